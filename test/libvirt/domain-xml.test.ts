import { readDomainXml, snapshotXml, withImage } from '@stillpoint/host-agent/libvirt/domain-xml.js';
import { parseXml, XmlError } from '@stillpoint/host-agent/libvirt/xml.js';
import { describe, expect, it } from 'vitest';
import { fuzzSeed, Random } from './random.js';

const UUID = '6a0d5f5e-3c3f-4a43-9f0f-0c1d2e3f4a5b';

function domain(devices: string, rest = ''): string {
  return `<domain type='kvm' id='7'><name>web-1</name><uuid>${UUID}</uuid>${rest}<devices>${devices}</devices></domain>`;
}

function onlyDisk(xml: string) {
  const [disk, ...others] = readDomainXml(domain(xml)).disks;
  expect(others).toEqual([]);
  return disk;
}

const plain = {
  target: 'vda',
  device: 'disk',
  kind: 'file',
  path: undefined,
  image: undefined,
  format: 'raw',
  serial: undefined,
  readOnly: false,
  shareable: false,
  transient: false,
  blockJob: false,
  chain: [],
};

describe('A disk in the domain XML', () => {
  it('in a file, with its backing chain', () => {
    const disk = onlyDisk(`
      <disk type='file' device='disk' snapshot='external'>
        <driver name='qemu' type='qcow2' discard='unmap'/>
        <source file='/images/a.sp-1.qcow2' index='3'><seclabel model='dac' relabel='no'/></source>
        <backingStore type='file' index='2'>
          <format type='qcow2'/><source file='/images/a.qcow2'/>
          <backingStore type='block' index='1'>
            <format type='raw'/><source dev='/dev/vg/base'/>
            <backingStore/>
          </backingStore>
        </backingStore>
        <target dev='vda' bus='virtio'/><serial>abc-1</serial><alias name='virtio-disk0'/>
      </disk>`);
    expect(disk).toEqual({
      ...plain,
      path: '/images/a.sp-1.qcow2',
      format: 'qcow2',
      serial: 'abc-1',
      chain: [
        { path: '/images/a.sp-1.qcow2', format: 'qcow2', kind: 'file' },
        { path: '/images/a.qcow2', format: 'qcow2', kind: 'file' },
        { path: '/dev/vg/base', format: 'raw', kind: 'block' },
      ],
    });
  });

  it('whose chain goes on in a network image ends there', () => {
    const disk = onlyDisk(`
      <disk type='file'><driver type='qcow2'/><source file='/a'/>
        <backingStore type='network'><format type='raw'/><source protocol='rbd' name='pool/image'/>
          <backingStore type='file'><format type='raw'/><source file='/never'/></backingStore>
        </backingStore>
        <target dev='vda'/></disk>`);
    expect(disk?.chain).toEqual([{ path: '/a', format: 'qcow2', kind: 'file' }]);
  });

  it('on a block device', () => {
    const disk = onlyDisk(
      `<disk type='block'><driver type='raw'/><source dev='/dev/vg/web'/><target dev='vda'/></disk>`,
    );
    expect(disk).toEqual({
      ...plain,
      kind: 'block',
      path: '/dev/vg/web',
      chain: [{ path: '/dev/vg/web', format: 'raw', kind: 'block' }],
    });
  });

  it('on Ceph, with the Cinder volume’s serial', () => {
    const disk = onlyDisk(`
      <disk type='network' device='disk'><driver type='raw' cache='writeback'/><auth username='cinder'><secret type='ceph' uuid='${UUID}'/></auth>
        <source protocol='rbd' name='volumes/volume-9f'><host name='10.0.0.1' port='6789'/></source>
        <target dev='vda'/><serial>9f000000-0000-4000-8000-000000000001</serial></disk>`);
    expect(disk).toEqual({
      ...plain,
      kind: 'rbd',
      image: 'volumes/volume-9f',
      serial: '9f000000-0000-4000-8000-000000000001',
    });
  });

  it('on another network storage', () => {
    const disk = onlyDisk(
      `<disk type='network'><source protocol='nbd' name='x'><host transport='unix' socket='/s'/></source><target dev='vda'/></disk>`,
    );
    expect(disk).toEqual({ ...plain, kind: 'network', image: 'nbd:x' });
  });

  it('that is a CD-ROM without a medium', () => {
    const disk = onlyDisk(`<disk type='file' device='cdrom'><target dev='vda'/><readonly/></disk>`);
    expect(disk).toEqual({ ...plain, device: 'cdrom', readOnly: true });
  });

  it.each([
    [
      'a LUN',
      `<disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='vda'/></disk>`,
      { device: 'lun', kind: 'block' },
    ],
    ['a floppy', `<disk type='file' device='floppy'><target dev='vda'/></disk>`, { device: 'floppy' }],
    ['a device of a later libvirt', `<disk type='file' device='tape'><target dev='vda'/></disk>`, { device: 'other' }],
    [
      'a volume of a pool',
      `<disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk>`,
      { kind: 'other', chain: [] },
    ],
    ['shareable', `<disk type='file'><source file='/a'/><target dev='vda'/><shareable/></disk>`, { shareable: true }],
    ['transient', `<disk type='file'><source file='/a'/><target dev='vda'/><transient/></disk>`, { transient: true }],
    [
      'mirrored',
      `<disk type='file'><source file='/a'/><mirror type='file' job='copy'/><target dev='vda'/></disk>`,
      { blockJob: true },
    ],
    ['without a driver', `<disk type='file'><source file='/a'/><target dev='vda'/></disk>`, { format: 'raw' }],
  ])('that is %s', (_, xml, expected) => {
    expect(onlyDisk(xml)).toMatchObject(expected);
  });

  it('has its path with the five entities and numbers decoded', () => {
    const disk = onlyDisk(
      `<disk type='file'><source file='/a&amp;b &lt;&gt;&quot;&apos; &#xe9;&#10;'/><target dev='vda'/></disk>`,
    );
    expect(disk?.path).toBe('/a&b <>"\' é\n');
  });
});

describe('A domain', () => {
  it('is live when it has an id', () => {
    expect(readDomainXml(domain('')).live).toBe(true);
    expect(readDomainXml(domain('').replace(" id='7'", '')).live).toBe(false);
  });

  it.each([
    [
      'connected',
      `<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>`,
      'connected',
    ],
    [
      'disconnected',
      `<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/></channel>`,
      'disconnected',
    ],
    [
      'of a domain that is off',
      `<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`,
      'unknown',
    ],
    [
      'absent beside another channel',
      `<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>`,
      'not-configured',
    ],
    ['absent', '', 'not-configured'],
  ])('has a guest agent that is %s', (_, devices, expected) => {
    expect(readDomainXml(domain(devices)).guestAgent).toBe(expected);
  });

  it.each([
    ['http://microsoft.com/win/10', { id: 'mswindows', isWindows: true }],
    ['http://debian.org/debian/12', { id: 'debian', isWindows: false }],
    ['nonsense', undefined],
  ])('tells its OS by libosinfo’s %s', (id, expected) => {
    const metadata = `<metadata><libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'><libosinfo:os id='${id}'/></libosinfo:libosinfo></metadata>`;
    expect(readDomainXml(domain('', metadata)).os).toEqual(expected);
  });
});

describe('Hostile XML', () => {
  it.each<[string, string]>([
    ['nothing', ''],
    ['no XML', 'internal error'],
    ['a document that is cut off', domain('').slice(0, -5)],
    ['tags that cross', '<domain><a><b></a></b></domain>'],
    ['two roots', '<domain/><domain/>'],
    ['another root', '<network/>'],
    ['a domain without a name', `<domain><uuid>${UUID}</uuid></domain>`],
    ['a domain without a UUID', '<domain><name>x</name></domain>'],
    ['a disk without a target', domain(`<disk type='file'><source file='/a'/></disk>`)],
    ['two disks of one target', domain(`<disk><target dev='vda'/></disk><disk><target dev='vda'/></disk>`)],
    ['a document type', `<!DOCTYPE domain [<!ENTITY x "y">]>${domain('')}`],
    ['an entity of a document type', domain(`<disk type='file'><source file='&x;'/><target dev='vda'/></disk>`)],
    ['an external entity', `<!DOCTYPE domain SYSTEM "file:///etc/passwd">${domain('')}`],
    ['an entity without an end', domain(`<disk type='file'><source file='a & b'/><target dev='vda'/></disk>`)],
    [
      'a character that there is not',
      domain(`<disk type='file'><source file='&#x110000;'/><target dev='vda'/></disk>`),
    ],
    ['the character NUL', domain(`<disk type='file'><source file='&#0;'/><target dev='vda'/></disk>`)],
    [
      'an entity named like a property of objects',
      domain(`<disk type='file'><source file='&constructor;'/><target dev='vda'/></disk>`),
    ],
    ['an element named like a property of objects', domain('<__proto__><polluted/></__proto__>')],
    ['deep nesting', domain(`${'<a>'.repeat(100_000)}${'</a>'.repeat(100_000)}`)],
    ['more than 1 MiB', domain(`<!--${'x'.repeat(1_100_000)}-->`)],
  ])('such as %s is an XmlError', (_, xml) => {
    expect(() => readDomainXml(xml)).toThrow(XmlError);
  });

  const seed = fuzzSeed();
  it(`damaged in any way is read or an XmlError (FUZZ_SEED=${seed})`, () => {
    const random = new Random(seed);
    const xml = Buffer.from(
      domain(
        `<disk type='file' device='disk'><driver type='qcow2'/><source file='/a&amp;b'/><backingStore type='file'><format type='raw'/>` +
          `<source file='/c'/></backingStore><target dev='vda'/></disk><channel><target name='org.qemu.guest_agent.0'/></channel>`,
      ),
    );
    const strange: unknown[] = [];
    for (let round = 0; round < 2_000; round++) {
      const damaged = random.damage(xml).toString('utf8');
      try {
        readDomainXml(damaged);
      } catch (error) {
        if (!(error instanceof XmlError)) strange.push({ damaged, error });
      }
    }
    expect(strange).toEqual([]);
  });
});

describe('The snapshot XML', () => {
  it('names every disk, and escapes what it is told', () => {
    const xml = snapshotXml([{ target: 'vda', path: `/a'"<&>.qcow2` }], ['vdc']);
    const disks = parseXml(xml).child('disks')?.children('disk') ?? [];
    expect(disks.map((disk) => [disk.attribute('name'), disk.attribute('snapshot')])).toEqual([
      ['vda', 'external'],
      ['vdc', 'no'],
    ]);
    expect(disks[0]?.attribute('type')).toBe('file');
    expect(disks[0]?.child('source')?.attribute('file')).toBe(`/a'"<&>.qcow2`);
    expect(disks[0]?.child('driver')?.attribute('type')).toBe('qcow2');
  });
});

describe('A definition with another image', () => {
  const rest = `<metadata><x:y xmlns:x="u" z='&lt;"&apos;'>t &amp; &#10;<![CDATA[<&>]]><!-- c --></x:y></metadata>`;
  const devices = (source: string) =>
    `\n  <disk type='file'><driver name='qemu' type='qcow2'/>${source}<target dev='vda'/></disk>\n  <graphics type='vnc' passwd='s3cret'/>\n`;

  it('has it in the one disk, and everything else as it was', () => {
    const before = domain(devices(`<source file='/a'/>`), rest);
    const after = withImage(before, 'vda', { path: '/b & c', format: 'qcow2', kind: 'file' });
    expect(parseXml(after).toString()).toBe(parseXml(before.replace("file='/a'", "file='/b &amp; c'")).toString());
  });

  it('may lie on a block device, and loses the backing chain that was another image’s', () => {
    const before = domain(
      devices(`<source file='/a' index='1'/><backingStore type='file'><source file='/z'/></backingStore>`),
    );
    const after = withImage(before, 'vda', { path: '/dev/vg/a', format: 'raw', kind: 'block' });
    expect(readDomainXml(after).disks).toMatchObject([
      { kind: 'block', path: '/dev/vg/a', format: 'raw', chain: [{ path: '/dev/vg/a' }] },
    ]);
    expect(after).not.toContain('index=');
    expect(after).toContain('s3cret');
  });

  it('is refused for a disk that there is not', () => {
    expect(() => withImage(domain(''), 'vda', { path: '/b', format: 'raw', kind: 'file' })).toThrow(XmlError);
  });
});

describe('The note in the metadata', () => {
  const noteOf = (metadata: string) => readDomainXml(domain('', `<metadata>${metadata}</metadata>`)).note;
  const ours = "xmlns:stillpoint='urn:stillpoint:lease'";

  it.each([
    ['as libvirt writes it', `<stillpoint:lease ${ours}>{&quot;a&quot;:"&lt;"}</stillpoint:lease>`, '{"a":"<"}'],
    ['under another prefix', "<x:y xmlns:x='urn:stillpoint:lease'>text</x:y>", 'text'],
    ['without a prefix', "<y xmlns='urn:stillpoint:lease'>text</y>", 'text'],
    [
      'beside others',
      `<nova:instance xmlns:nova='http://nova'/><stillpoint:lease ${ours}>text</stillpoint:lease>`,
      'text',
    ],
    ['empty', `<stillpoint:lease ${ours}/>`, ''],
    ['with elements instead of text', `<stillpoint:lease ${ours}><a>b</a></stillpoint:lease>`, ''],
    ['with an entity that nobody defined', `<stillpoint:lease ${ours}>&boom;</stillpoint:lease>`, ''],
    [
      'of a stranger with our prefix',
      "<stillpoint:lease xmlns:stillpoint='urn:other'>text</stillpoint:lease>",
      undefined,
    ],
    ['none', '', undefined],
  ])('%s', (_, metadata, note) => {
    expect(noteOf(metadata)).toBe(note);
  });
});
