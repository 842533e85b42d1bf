import { isAbsolute } from 'node:path';
import {
  type BeginHold,
  type DeleteSnapshotRequest,
  type FreezeFileSystemsRequest,
  type Overlay,
  type PrepareRequest,
  Quiesce,
  type SnapshotVmRequest,
} from '@stillpoint/proto';
import { HostAgentError } from '../errors.js';
import type { QuiescePolicy } from '../window.js';

/**
 * Every request is checked here, before any room sees it: whatever passes has the form and the bounds that the contract names.
 * All of these throw INVALID_ARGUMENT with `metadata.field`.
 */

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
// A second window only for a lost connection or worker, and one unfrozen window under best-effort: never more.
const windowPattern = /^([0-9a-f-]{36})\.([1-3])$/;
const targetPattern = /^[a-z]{2,4}[a-z0-9]{0,12}$/;
const namePattern = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$/;

const maxDisks = 128;
const maxTextCharacters = 500;
const maxPathCharacters = 4_096;

const defaultFreezeTimeoutMs = 30_000;

export function invalid(field: string, problem: string): HostAgentError {
  return new HostAgentError('INVALID_ARGUMENT', `${field}: ${problem}.`, { metadata: { field } });
}

export function checkedUuid(field: string, value: string): string {
  if (!uuidPattern.test(value))
    throw invalid(field, 'must be a UUID in lower case, e.g. 6ba7b810-9dad-41d1-80b4-00c04fd430c8');
  return value;
}

/** A window id and the operation id in it. */
export function checkedWindow(field: string, value: string): { window: string; operation: string } {
  const operation = windowPattern.exec(value)?.[1];
  if (operation === undefined || !uuidPattern.test(operation)) {
    throw invalid(
      field,
      'must be <operation id>.<attempt>, the operation id a UUID in lower case and the attempt 1, 2 or 3',
    );
  }
  return { window: value, operation };
}

export function checkedVmWindow(request: { vmUuid: string; windowId: string }): {
  vm: string;
  window: string;
  operation: string;
} {
  return { vm: checkedUuid('vm_uuid', request.vmUuid), ...checkedWindow('window_id', request.windowId) };
}

export interface CheckedPrepare {
  vm: string;
  operation: string;
  window: string;
  installation: string;
  localDisks: string[];
  setDisks: string[];
  unquiescedDisks: string[];
  quiesce: QuiescePolicy;
  /** ms; undefined: the host's default. */
  windowLimitMs: number | undefined;
}

export function checkedPrepare(request: PrepareRequest): CheckedPrepare {
  const { vm, window, operation } = checkedVmWindow(request);
  if (checkedUuid('operation_id', request.operationId) !== operation) {
    throw invalid('window_id', 'must begin with operation_id');
  }
  const setDisks = checkedTargets('set_disks', request.setDisks);
  if (setDisks.length === 0) throw invalid('set_disks', 'names no disk; name every disk of the snapshot');
  const limit = request.windowLimitMs;
  return {
    vm,
    operation,
    window,
    installation: checkedInstallation(request.installationId),
    localDisks: checkedSubset('local_disks', request.localDisks, setDisks),
    setDisks,
    unquiescedDisks: checkedSubset('unquiesced_disks', request.unquiescedDisks, setDisks),
    quiesce: checkedQuiesce('quiesce', request.quiesce),
    windowLimitMs: limit === 0 ? undefined : checkedRange('window_limit_ms', limit, 100, 60_000),
  };
}

export interface CheckedFreeze {
  vm: string;
  window: string;
  cuts: string[];
  freezeTimeoutMs: number;
}

export function checkedFreeze(request: FreezeFileSystemsRequest): CheckedFreeze {
  const { vm, window } = checkedVmWindow(request);
  if (request.cuts.length === 0) throw invalid('cuts', 'names no cut; a freeze without a cut has no purpose');
  if (request.cuts.length > maxDisks) throw invalid('cuts', `names more than ${maxDisks}`);
  for (const cut of request.cuts) checkedName('cuts', cut);
  refuseDuplicates('cuts', request.cuts);
  return { vm, window, cuts: request.cuts, freezeTimeoutMs: checkedFreezeTimeout(request.freezeTimeoutMs) };
}

export function checkedBegin(begin: BeginHold): { vm: string; window: string; cut: string } {
  const { vm, window } = checkedVmWindow(begin);
  return { vm, window, cut: checkedName('cut', begin.cut) };
}

export type CheckedSnapshotVm = { vm: string; window: string; disks: string[] } & (
  | { frozen: true; cut: string }
  | { frozen: false; quiesce: QuiescePolicy; freezeTimeoutMs: number }
);

export function checkedSnapshotVm(request: SnapshotVmRequest): CheckedSnapshotVm {
  const { vm, window } = checkedVmWindow(request);
  const disks = checkedTargets('disks', request.disks);
  if (disks.length === 0) throw invalid('disks', 'names no disk');
  if (request.frozen) return { vm, window, disks, frozen: true, cut: checkedName('cut', request.cut) };
  const quiesce = checkedQuiesce('quiesce', request.quiesce);
  return { vm, window, disks, frozen: false, quiesce, freezeTimeoutMs: checkedFreezeTimeout(request.freezeTimeoutMs) };
}

export interface CheckedDelete {
  vm: string;
  operation: string;
  installation: string;
  window: string;
  overlays: Overlay[];
}

export function checkedDelete(request: DeleteSnapshotRequest): CheckedDelete {
  const { vm, window } = checkedVmWindow(request);
  if (request.overlays.length === 0) throw invalid('overlays', 'names no overlay');
  checkedTargets(
    'overlays.target',
    request.overlays.map((overlay) => overlay.target),
  );
  for (const overlay of request.overlays) {
    checkedPath('overlays.overlay_path', overlay.overlayPath);
    checkedPath('overlays.base_path', overlay.basePath);
    if (overlay.baseFormat !== 'qcow2' && overlay.baseFormat !== 'raw')
      throw invalid('overlays.base_format', 'must be qcow2 or raw');
    if (overlay.sizeBytes < 0) throw invalid('overlays.size_bytes', 'must not be negative');
  }
  return {
    vm,
    window,
    operation: checkedUuid('operation_id', request.operationId),
    installation: checkedInstallation(request.installationId),
    overlays: request.overlays,
  };
}

/** A text for the journal and for people: bounded, on one line. */
export function checkedText(field: string, value: string): string {
  if (value.length > maxTextCharacters) throw invalid(field, `is longer than ${maxTextCharacters} characters`);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused.
  if (/[\u0000-\u001f\u007f]/.test(value)) throw invalid(field, 'holds control characters');
  return value;
}

function checkedInstallation(value: string): string {
  return checkedName('installation_id', value);
}

function checkedName(field: string, value: string): string {
  if (!namePattern.test(value)) {
    throw invalid(field, 'must be 1 to 128 letters, digits, or . _ : - and begin with a letter or digit');
  }
  return value;
}

function checkedTargets(field: string, targets: string[]): string[] {
  if (targets.length > maxDisks) throw invalid(field, `names more than ${maxDisks} disks`);
  for (const target of targets) {
    if (!targetPattern.test(target)) throw invalid(field, 'must name disks by their target, e.g. vda');
  }
  refuseDuplicates(field, targets);
  return targets;
}

function checkedSubset(field: string, targets: string[], setDisks: string[]): string[] {
  checkedTargets(field, targets);
  const outside = targets.find((target) => !setDisks.includes(target));
  if (outside !== undefined) throw invalid(field, `names ${outside}, which is not in set_disks`);
  return targets;
}

function refuseDuplicates(field: string, names: string[]): void {
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) throw invalid(field, `names ${twice} twice`);
}

function checkedPath(field: string, value: string): void {
  if (!isAbsolute(value) || value.length > maxPathCharacters || value.includes('\0')) {
    throw invalid(field, `must be an absolute path of at most ${maxPathCharacters} characters`);
  }
}

function checkedFreezeTimeout(ms: number): number {
  return ms === 0 ? defaultFreezeTimeoutMs : checkedRange('freeze_timeout_ms', ms, 1_000, 600_000);
}

function checkedRange(field: string, value: number, least: number, most: number): number {
  if (value < least || value > most) throw invalid(field, `must be ${least} to ${most}, or 0 for the default`);
  return value;
}

function checkedQuiesce(field: string, value: Quiesce): QuiescePolicy {
  switch (value) {
    case Quiesce.REQUIRED:
      return 'required';
    case Quiesce.BEST_EFFORT:
      return 'best-effort';
    case Quiesce.SKIP:
      return 'skip';
    default:
      throw invalid(field, 'must be REQUIRED, BEST_EFFORT or SKIP');
  }
}
