"""What schemathesis cannot know of this API: which VMs there are, and what it must not touch."""

import os
import re
from itertools import count

import schemathesis

VMS = os.environ["STILLPOINT_SCHEMATHESIS_VMS"].split(",")
KEYS = count()
HOST = os.environ["STILLPOINT_SCHEMATHESIS_HOST"]


@schemathesis.hook
def before_call(context, case, kwargs):
    # A host that is added is connected to: the run's traffic must not leave this machine, whatever name was generated.
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("address"), str):
        address = re.fullmatch(r".*:(\d+)\s*", body["address"], re.DOTALL)
        if address and not re.search(r"[\s/@]", body["address"]):
            body["address"] = f"127.0.0.1:{address.group(1)}"
    # Without its only host the engine would have no VM for the rest of the run.
    if case.method.upper() == "DELETE" and (case.path_parameters or {}).get("name") == HOST:
        case.path_parameters["name"] = "another-host"
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive:
        return
    # A long poll is one: its length is no matter.
    if "wait" in (case.query or {}):
        case.query["wait"] = float(case.query["wait"]) % 0.5
    # A key that was used with another request is refused, rightly.
    if "idempotency-key" in (case.headers or {}):
        case.headers["idempotency-key"] = f"schemathesis-{next(KEYS)}"
    # Of every two valid requests one is for a VM that there is. Invalid ones stay as they are.
    if "vm" in (case.path_parameters or {}):
        number = sum(str(case.path_parameters["vm"]).encode("utf-8", "replace"))
        if number % 2 == 0:
            case.path_parameters["vm"] = VMS[number // 2 % len(VMS)]
