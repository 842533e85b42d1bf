/**
 * The procedures and events of libvirt's remote protocol that the host agent uses: numbers, and how arguments and results look on the wire.
 *
 * Source of the numbers, types and limits: libvirt's src/remote/remote_protocol.x and qemu_protocol.x, which are fixed since each
 * procedure's first release.
 */
import type { LibvirtErrorFields } from './errors.js';
import { XdrError, type XdrReader, type XdrWriter } from './xdr.js';

export const Program = { remote: 0x2000_8086, qemu: 0x2000_8087, keepalive: 0x6b65_6570 } as const;

/** One call: how its arguments are written and its result is read. */
export interface Procedure<Args, Result> {
  readonly name: string;
  readonly program: number;
  readonly number: number;
  encode(writer: XdrWriter, args: Args): void;
  decode(reader: XdrReader): Result;
}

/** A domain as libvirt names it: all three travel in every call about it, the UUID decides. */
export interface Domain {
  readonly name: string;
  /** 36 characters, lower case. */
  readonly uuid: string;
  /** The number of the running instance, -1 when not running; it changes with every start. */
  readonly id: number;
}

/** A value of libvirt's virTypedParameter. */
export type TypedValue = number | bigint | boolean | string;

export interface FileSystemInfo {
  /** Where the guest mounted it. */
  mountpoint: string;
  /** The guest's name of the device, e.g. `vda1` or `dm-0`. */
  name: string;
  type: string;
  /** The disks' targets (`vda`) that hold it. */
  disks: string[];
}

export interface BlockJobInfo {
  /** virDomainBlockJobType: 1 pull, 2 copy, 3 commit, 4 active commit, 5 backup. */
  type: number;
  /** Progress in units of the job; the end of a job that is ready is reached when both are equal. */
  cursor: bigint;
  end: bigint;
}

export interface BlockInfo {
  /** Highest byte that the host allocated for the image, in bytes. */
  allocation: number;
  /** What the guest sees, in bytes. */
  capacity: number;
  /** The size of the image's file or device, in bytes. */
  physical: number;
}

export interface JobStats {
  /** virDomainJobType: 0 means that no job runs. */
  type: number;
  parameters: Map<string, TypedValue>;
}

const DOMAIN_LIST_MAX = 16_384;
const FSFREEZE_MOUNTPOINTS_MAX = 256;
const FSINFO_MAX = 256;
const FSINFO_DISKS_MAX = 256;
const JOB_STATS_MAX = 64;
const AUTH_TYPE_LIST_MAX = 20;

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

function writeUuid(writer: XdrWriter, uuid: string): void {
  if (!UUID.test(uuid)) throw new XdrError(`'${uuid.slice(0, 64)}' is not a UUID`);
  writer.opaque(Buffer.from(uuid.replaceAll('-', ''), 'hex'));
}

function readUuid(reader: XdrReader): string {
  const hex = reader.opaque(16).toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

function writeDomain(writer: XdrWriter, domain: Domain): void {
  writer.string(domain.name);
  writeUuid(writer, domain.uuid);
  writer.int(domain.id);
}

/** Reads `remote_nonnull_domain`. */
export function readDomain(reader: XdrReader): Domain {
  return { name: reader.string(), uuid: readUuid(reader), id: reader.int() };
}

function readOptionalString(reader: XdrReader): string | null {
  return reader.optional((r) => r.string());
}

/** Reads `remote_error`, the body of every reply with the status 'error'. */
export function readError(reader: XdrReader): LibvirtErrorFields {
  const number = reader.int();
  const domain = reader.int();
  const message = readOptionalString(reader) ?? `libvirt error ${number} without a message`;
  const level = reader.int();
  reader.optional(readDomain);
  const str1 = readOptionalString(reader);
  const str2 = readOptionalString(reader);
  const str3 = readOptionalString(reader);
  const int1 = reader.int();
  const int2 = reader.int();
  reader.optional((network) => {
    network.string();
    readUuid(network);
  });
  return { number, domain, message, level, str1, str2, str3, int1, int2 };
}

function readTypedParameter(reader: XdrReader): [string, TypedValue] {
  const field = reader.string();
  const type = reader.int();
  switch (type) {
    case 1:
      return [field, reader.int()];
    case 2:
      return [field, reader.uint()];
    case 3:
      return [field, reader.hyper()];
    case 4:
      return [field, reader.uhyper()];
    case 5:
      return [field, reader.double()];
    case 6:
      return [field, reader.int() !== 0];
    case 7:
      return [field, reader.string()];
    default:
      throw new XdrError(`${type} is not a type of a typed parameter`);
  }
}

function nothing(): void {}

function remote<Args, Result>(
  number: number,
  name: string,
  encode: (writer: XdrWriter, args: Args) => void,
  decode: (reader: XdrReader) => Result,
): Procedure<Args, Result> {
  return { name, program: Program.remote, number, encode, decode };
}

function ofDomain<Result>(number: number, name: string, decode: (reader: XdrReader) => Result) {
  return remote<Domain, Result>(number, name, writeDomain, decode);
}

function ofDomainWithFlags<Result>(number: number, name: string, decode: (reader: XdrReader) => Result) {
  return remote<{ domain: Domain; flags: number }, Result>(
    number,
    name,
    (w, { domain, flags }) => {
      writeDomain(w, domain);
      w.uint(flags);
    },
    decode,
  );
}

function ofDisk<Result>(number: number, name: string, decode: (reader: XdrReader) => Result) {
  return remote<{ domain: Domain; disk: string; flags: number }, Result>(
    number,
    name,
    (w, { domain, disk, flags }) => {
      writeDomain(w, domain);
      w.string(disk).uint(flags);
    },
    decode,
  );
}

function fileSystems(number: number, name: string) {
  return remote<{ domain: Domain; mountpoints: readonly string[] }, number>(
    number,
    name,
    (w, { domain, mountpoints }) => {
      writeDomain(w, domain);
      w.array(mountpoints, FSFREEZE_MOUNTPOINTS_MAX, (writer, path) => writer.string(path)).uint(0);
    },
    (r) => r.int(),
  );
}

/** virAuthType values of AUTH_LIST. */
export const AuthType = { none: 0, sasl: 1, polkit: 2 } as const;

export const Procedures = {
  connectOpen: remote<{ uri: string }, void>(
    1,
    'CONNECT_OPEN',
    (w, { uri }) => w.optional(uri, (writer, value) => writer.string(value)).uint(0),
    nothing,
  ),
  connectClose: remote<void, void>(2, 'CONNECT_CLOSE', nothing, nothing),
  connectGetVersion: remote<void, bigint>(4, 'CONNECT_GET_VERSION', nothing, (r) => r.uhyper()),
  domainDefineXml: remote<{ xml: string; flags: number }, Domain>(
    350,
    'DOMAIN_DEFINE_XML_FLAGS',
    (w, { xml, flags }) => w.string(xml).uint(flags),
    readDomain,
  ),
  domainGetXmlDesc: ofDomainWithFlags(14, 'DOMAIN_GET_XML_DESC', (r) => r.string()),
  domainLookupByName: remote<string, Domain>(23, 'DOMAIN_LOOKUP_BY_NAME', (w, name) => w.string(name), readDomain),
  domainLookupByUuid: remote<string, Domain>(24, 'DOMAIN_LOOKUP_BY_UUID', writeUuid, readDomain),
  domainResume: ofDomain(28, 'DOMAIN_RESUME', nothing),
  domainSuspend: ofDomain(34, 'DOMAIN_SUSPEND', nothing),
  authList: remote<void, number[]>(66, 'AUTH_LIST', nothing, (r) => r.array(AUTH_TYPE_LIST_MAX, (item) => item.int())),
  domainIsPersistent: ofDomain(151, 'DOMAIN_IS_PERSISTENT', (r) => r.int() !== 0),
  connectGetLibVersion: remote<void, bigint>(157, 'CONNECT_GET_LIB_VERSION', nothing, (r) => r.uhyper()),
  domainHasManagedSaveImage: ofDomainWithFlags(183, 'DOMAIN_HAS_MANAGED_SAVE_IMAGE', (r) => r.int() !== 0),
  domainSnapshotCreateXml: remote<{ domain: Domain; xml: string; flags: number }, { name: string }>(
    185,
    'DOMAIN_SNAPSHOT_CREATE_XML',
    (w, { domain, xml, flags }) => {
      writeDomain(w, domain);
      w.string(xml).uint(flags);
    },
    (r) => {
      const name = r.string();
      readDomain(r);
      return { name };
    },
  ),
  domainGetBlockInfo: ofDisk(194, 'DOMAIN_GET_BLOCK_INFO', (r): BlockInfo => {
    return { allocation: r.size(), capacity: r.size(), physical: r.size() };
  }),
  domainGetState: ofDomainWithFlags(212, 'DOMAIN_GET_STATE', (r) => ({ state: r.int(), reason: r.int() })),
  domainBlockJobAbort: ofDisk(237, 'DOMAIN_BLOCK_JOB_ABORT', nothing),
  domainGetBlockJobInfo: ofDisk(238, 'DOMAIN_GET_BLOCK_JOB_INFO', (r): BlockJobInfo | null => {
    const found = r.int();
    const type = r.int();
    r.uhyper(); // bandwidth
    const cursor = r.uhyper();
    const end = r.uhyper();
    return found === 0 ? null : { type, cursor, end };
  }),
  connectListAllDomains: remote<{ flags: number }, Domain[]>(
    273,
    'CONNECT_LIST_ALL_DOMAINS',
    (w, { flags }) => w.int(1).uint(flags),
    (r) => {
      const domains = r.array(DOMAIN_LIST_MAX, readDomain);
      r.uint();
      return domains;
    },
  ),
  domainBlockCommit: remote<
    { domain: Domain; disk: string; base: string | null; top: string | null; bandwidth: bigint; flags: number },
    void
  >(
    290,
    'DOMAIN_BLOCK_COMMIT',
    (w, { domain, disk, base, top, bandwidth, flags }) => {
      writeDomain(w, domain);
      w.string(disk);
      w.optional(base, (writer, path) => writer.string(path));
      w.optional(top, (writer, path) => writer.string(path));
      w.uhyper(bandwidth).uint(flags);
    },
    nothing,
  ),
  domainSetMetadata: remote<
    { domain: Domain; type: number; metadata: string | null; key: string; uri: string; flags: number },
    void
  >(
    264,
    'DOMAIN_SET_METADATA',
    (w, { domain, type, metadata, key, uri, flags }) => {
      writeDomain(w, domain);
      w.int(type);
      for (const text of [metadata, key, uri]) w.optional(text, (writer, value) => writer.string(value));
      w.uint(flags);
    },
    nothing,
  ),
  domainGetJobStats: ofDomainWithFlags(298, 'DOMAIN_GET_JOB_STATS', (r): JobStats => {
    return { type: r.int(), parameters: new Map(r.array(JOB_STATS_MAX, readTypedParameter)) };
  }),
  eventRegister: remote<{ eventId: number }, number>(
    316,
    'CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY',
    (w, { eventId }) => w.int(eventId).uint(0), // no domain: the events of all
    (r) => r.int(),
  ),
  domainFsFreeze: fileSystems(335, 'DOMAIN_FSFREEZE'),
  domainFsThaw: fileSystems(336, 'DOMAIN_FSTHAW'),
  domainGetFsInfo: ofDomainWithFlags(349, 'DOMAIN_GET_FSINFO', (r): FileSystemInfo[] => {
    const infos = r.array(FSINFO_MAX, (info) => ({
      mountpoint: info.string(),
      name: info.string(),
      type: info.string(),
      disks: info.array(FSINFO_DISKS_MAX, (alias) => alias.string()),
    }));
    r.uint();
    return infos;
  }),
  domainAgentSetResponseTimeout: remote<{ domain: Domain; timeout: number }, void>(
    420,
    'DOMAIN_AGENT_SET_RESPONSE_TIMEOUT',
    (w, { domain, timeout }) => {
      writeDomain(w, domain);
      w.int(timeout).uint(0);
    },
    (r) => {
      r.int();
    },
  ),
  qemuAgentCommand: {
    name: 'QEMU_DOMAIN_AGENT_COMMAND',
    program: Program.qemu,
    number: 3,
    encode: (w, { domain, command, timeout }) => {
      writeDomain(w, domain);
      w.string(command).int(timeout).uint(0);
    },
    decode: readOptionalString,
  } satisfies Procedure<{ domain: Domain; command: string; timeout: number }, string | null>,
} as const;

export interface LifecycleEvent {
  domain: Domain;
  /** virDomainEventType: 0 defined, 1 undefined, 2 started, 3 suspended, 4 resumed, 5 stopped, 6 shutdown, 7 pmsuspended, 8 crashed. */
  event: number;
  /** Detail, whose meaning depends on `event` (virDomainEvent*DetailType). */
  detail: number;
}

export interface AgentEvent {
  domain: Domain;
  connected: boolean;
}

export interface BlockJobEvent {
  domain: Domain;
  /** The disk's target, e.g. `vda`. */
  disk: string;
  /** virDomainBlockJobType, see {@link BlockJobInfo}. */
  type: number;
  /** virConnectDomainEventBlockJobStatus: 0 completed, 1 failed, 2 cancelled, 3 ready to pivot. */
  status: number;
}

/** The id by which an event is registered, and the procedure number under which it then arrives. */
export const Events = {
  lifecycle: {
    id: 0,
    number: 318,
    decode: (r: XdrReader): LifecycleEvent => {
      r.int(); // callback id
      return { domain: readDomain(r), event: r.int(), detail: r.int() };
    },
  },
  // BLOCK_JOB_2, which names the target (`vda`); the older BLOCK_JOB names the image, which a pivot changes.
  blockJob: {
    id: 16,
    number: 339,
    decode: (r: XdrReader): BlockJobEvent => {
      r.int(); // callback id
      return { domain: readDomain(r), disk: r.string(), type: r.int(), status: r.int() };
    },
  },
  agent: {
    id: 18,
    number: 348,
    decode: (r: XdrReader): AgentEvent => {
      r.int(); // callback id
      const domain = readDomain(r);
      const state = r.int();
      r.int(); // reason: domain started, or the channel itself
      return { domain, connected: state === 1 };
    },
  },
} as const;
