/**
 * What the host agent reads of libvirt's domain XML (libvirt's docs/formatdomain), and the few documents that it writes.
 *
 * Every function throws XmlError for XML that libvirt does not write.
 */
import type { ChainImage, Disk, GuestOs, OverlayFile, Vm } from '../hypervisor.js';
import { encode, parseXml, XmlElement, XmlError } from './xml.js';

/** Where the metadata holds what is Stillpoint's; the prefix is for people who read it. */
export const noteNamespace = { prefix: 'stillpoint', uri: 'urn:stillpoint:lease' } as const;

/** The channel's name is fixed: libvirt looks for the guest agent there and nowhere else. */
const AGENT_CHANNEL = 'org.qemu.guest_agent.0';

export interface DomainDefinition {
  uuid: string;
  name: string;
  /** True for the definition of a running domain. */
  live: boolean;
  guestAgent: Vm['guestAgent'];
  /** What the definition's libosinfo metadata says. */
  os: GuestOs | undefined;
  /** The text in our element of the metadata; empty where it is no text. */
  note: string | undefined;
  disks: Disk[];
  /** Copies and active commits that run, by their disk's target. */
  mirrors: Map<string, Mirror>;
}

/** A block job that copies a disk's writes into another image until somebody switches the disk to it. */
export interface Mirror {
  isActiveCommit: boolean;
  /** Path of the image it writes to; undefined: no file or block device. */
  path: string | undefined;
  /** It has caught up: the disk can be switched. */
  isReady: boolean;
}

/** Reads a domain's XML, live or inactive. */
export function readDomainXml(xml: string): DomainDefinition {
  const domain = domainOf(xml);
  return {
    uuid: textOf(domain, 'uuid'),
    name: textOf(domain, 'name'),
    live: domain.attribute('id') !== undefined,
    guestAgent: guestAgentOf(domain),
    os: osOf(domain),
    note: noteOf(domain),
    disks: disksOf(domain).map(readDisk),
    mirrors: mirrorsOf(domain),
  };
}

/** Our element of the metadata, as it is handed to libvirt, which gives it its namespace. */
export function noteXml(note: string): string {
  return `<lease>${encode(note)}</lease>`;
}

/**
 * The XML of one transaction that switches each named disk to its overlay. Every other disk is named with snapshot='no': one that is not
 * named would be snapshotted too, to a file that libvirt names itself.
 */
export function snapshotXml(overlays: readonly OverlayFile[], others: readonly string[]): string {
  const disks = [
    ...overlays.map(
      ({ target, path }) =>
        `<disk name="${encode(target)}" snapshot="external" type="file"><driver type="qcow2"/><source file="${encode(path)}"/></disk>`,
    ),
    ...others.map((target) => `<disk name="${encode(target)}" snapshot="no"/>`),
  ];
  return `<domainsnapshot><disks>${disks.join('')}</disks></domainsnapshot>`;
}

/**
 * An inactive domain's XML with another image for one disk. The backing chain is left out: libvirt finds it in the image when the domain
 * starts.
 */
export function withImage(xml: string, target: string, image: ChainImage): string {
  const domain = domainOf(xml);
  const disk = disksOf(domain).find((element) => targetOf(element) === target);
  if (disk === undefined) throw new XmlError(`a domain without the disk ${target}`);
  disk.setAttribute('type', image.kind);
  disk.removeChildren('backingStore');
  childOf(disk, 'driver').setAttribute('type', image.format);
  const source = childOf(disk, 'source');
  for (const name of ['file', 'dev', 'index']) source.removeAttribute(name);
  source.setAttribute(image.kind === 'file' ? 'file' : 'dev', image.path);
  return domain.toString();
}

function domainOf(xml: string): XmlElement {
  const root = parseXml(xml);
  if (root.name !== 'domain') throw new XmlError(`<${root.name}> instead of <domain>`);
  return root;
}

function disksOf(domain: XmlElement): XmlElement[] {
  const disks = domain.child('devices')?.children('disk') ?? [];
  const targets = new Set(disks.map(targetOf));
  if (targets.size !== disks.length) throw new XmlError('a domain with two disks of one target');
  return disks;
}

function targetOf(disk: XmlElement): string {
  const target = disk.child('target')?.attribute('dev');
  if (target === undefined || target === '') throw new XmlError('a disk without a target');
  return target;
}

function readDisk(disk: XmlElement): Disk {
  const source = disk.child('source');
  const kind = kindOf(disk.attribute('type'), source);
  const path = pathOf(kind, source);
  const format = disk.child('driver')?.attribute('type') ?? 'raw'; // libvirt's own default, since probing follows the guest's choice
  const serial = disk.child('serial')?.text;
  return {
    target: targetOf(disk),
    device: deviceOf(disk.attribute('device')),
    kind,
    path,
    image: imageOf(kind, source),
    format,
    serial: serial === '' ? undefined : serial,
    readOnly: disk.child('readonly') !== undefined,
    shareable: disk.child('shareable') !== undefined,
    transient: disk.child('transient') !== undefined,
    // A mirror is a copy or an active commit; other jobs are not in the XML.
    blockJob: disk.child('mirror') !== undefined,
    chain:
      path !== undefined && (kind === 'file' || kind === 'block')
        ? [{ path, format, kind }, ...backingChain(disk)]
        : [],
  };
}

function mirrorsOf(domain: XmlElement): Map<string, Mirror> {
  const mirrors = new Map<string, Mirror>();
  for (const disk of disksOf(domain)) {
    const mirror = disk.child('mirror');
    if (mirror === undefined) continue;
    const source = mirror.child('source');
    mirrors.set(targetOf(disk), {
      isActiveCommit: mirror.attribute('job') === 'active-commit',
      path: pathOf(kindOf(mirror.attribute('type'), source), source),
      isReady: mirror.attribute('ready') === 'yes',
    });
  }
  return mirrors;
}

/** The images below, as far down as they are files and block devices. */
function backingChain(disk: XmlElement): ChainImage[] {
  const chain: ChainImage[] = [];
  for (let at = disk.child('backingStore'); at !== undefined; at = at.child('backingStore')) {
    const kind = kindOf(at.attribute('type'), at.child('source'));
    const path = pathOf(kind, at.child('source'));
    if (path === undefined || (kind !== 'file' && kind !== 'block')) break;
    chain.push({ path, format: at.child('format')?.attribute('type') ?? 'raw', kind });
  }
  return chain;
}

function kindOf(type: string | undefined, source: XmlElement | undefined): Disk['kind'] {
  if (type === 'file' || type === 'block') return type;
  if (type === 'network') return source?.attribute('protocol') === 'rbd' ? 'rbd' : 'network';
  return 'other';
}

function deviceOf(device: string | undefined): Disk['device'] {
  switch (device) {
    case undefined:
    case 'disk':
      return 'disk';
    case 'cdrom':
    case 'floppy':
    case 'lun':
      return device;
    default:
      return 'other';
  }
}

function pathOf(kind: Disk['kind'], source: XmlElement | undefined): string | undefined {
  const path = kind === 'file' ? source?.attribute('file') : kind === 'block' ? source?.attribute('dev') : undefined;
  return path === '' ? undefined : path;
}

function imageOf(kind: Disk['kind'], source: XmlElement | undefined): string | undefined {
  if (kind !== 'rbd' && kind !== 'network') return undefined;
  const name = source?.attribute('name') ?? '';
  if (kind === 'rbd') return name === '' ? undefined : name;
  return `${source?.attribute('protocol') ?? ''}:${name}`;
}

function guestAgentOf(domain: XmlElement): Vm['guestAgent'] {
  for (const channel of domain.child('devices')?.children('channel') ?? []) {
    const target = channel.child('target');
    if (target?.attribute('name') !== AGENT_CHANNEL) continue;
    const state = target.attribute('state');
    return state === 'connected' || state === 'disconnected' ? state : 'unknown';
  }
  return 'not-configured';
}

/** Metadata as libosinfo's tools write it: `<os id="http://debian.org/debian/12"/>`. The prefix is part of the name: all known tools write this one. */
function osOf(domain: XmlElement): GuestOs | undefined {
  const libosinfo = domain.child('metadata')?.child('libosinfo:libosinfo');
  const id = libosinfo?.child('libosinfo:os')?.attribute('id');
  const [, host, family] = /^https?:\/\/([^/]+)\/([^/]+)/.exec(id ?? '') ?? [];
  if (host === undefined || family === undefined) return undefined;
  // The guest agent's word for Windows.
  return host === 'microsoft.com' ? { id: 'mswindows', isWindows: true } : { id: family, isWindows: false };
}

/** Found by its namespace, whatever prefix it has by now. Whoever wrote it, it never keeps the definition from being read. */
function noteOf(domain: XmlElement): string | undefined {
  for (const element of domain.child('metadata')?.elements ?? []) {
    const prefix = /^([^:]+):/.exec(element.name)?.[1];
    try {
      if (element.attribute(prefix === undefined ? 'xmlns' : `xmlns:${prefix}`) === noteNamespace.uri)
        return element.text;
    } catch {
      return '';
    }
  }
  return undefined;
}

function textOf(domain: XmlElement, name: string): string {
  const text = domain.child(name)?.text ?? '';
  if (text === '') throw new XmlError(`a domain without <${name}>`);
  return text;
}

function childOf(parent: XmlElement, name: string): XmlElement {
  const child = parent.child(name);
  if (child !== undefined) return child;
  const added = new XmlElement(name);
  parent.append(added);
  return added;
}
