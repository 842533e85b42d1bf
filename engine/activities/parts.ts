import type { LocalPart, MergedPart } from '@stillpoint/workflows';
import type { HostMergeResult, HostOverlay } from '../hosts/hosts.js';

/** What the host made for each disk, as a snapshot's part: after the cut the base holds the data, and the guest writes to the overlay. */
export function partsOf(overlays: HostOverlay[]): LocalPart[] {
  return overlays.map(({ target, overlayPath, basePath, baseFormat, sizeBytes }) => ({
    target,
    kind: 'local',
    path: basePath,
    format: baseFormat,
    overlay: overlayPath,
    sizeBytes,
  }));
}

/** The same for the host: what it deletes. */
export function overlaysOf(parts: LocalPart[]): HostOverlay[] {
  return parts.map(({ target, path, format, overlay, sizeBytes }) => ({
    target,
    overlayPath: overlay,
    basePath: path,
    baseFormat: format,
    sizeBytes,
  }));
}

export function mergedParts(result: HostMergeResult): MergedPart[] {
  return result.disks.map(({ target, overlayPath, basePath, outcome, detail, untouched }) => ({
    target,
    kind: 'local',
    overlay: overlayPath,
    path: basePath,
    outcome,
    detail,
    ...(outcome === 'pending' && !untouched ? { begun: true } : {}),
  }));
}
