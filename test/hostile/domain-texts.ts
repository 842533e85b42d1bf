import fc from 'fast-check';

/** Texts as an attacker writes them: entities, paths that lead elsewhere, other alphabets, halves of characters. */
export const hostileText: fc.Arbitrary<string> = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 40 }),
  fc.constantFrom(
    '',
    'vda',
    'org.qemu.guest_agent.0',
    'rbd',
    'qcow2',
    'file',
    'network',
    '/images/a.qcow2',
    '../../etc/passwd',
    '/images/../etc/passwd',
    '/images/a\0b',
    '/images/a,file=/etc/passwd',
    '&amp;',
    '&lt;disk&gt;',
    '&canary;',
    '%canary;',
    '&#0;',
    '&#x110000;',
    '&#xd800;',
    '&constructor;',
    '&amp',
    ']]>',
    '\'"><disk/>',
  ),
);

const elementName = fc.constantFrom(
  ...'domain name uuid devices disk source target driver backingStore format mirror serial readonly channel metadata x __proto__ constructor'.split(
    ' ',
  ),
  'libosinfo:libosinfo',
  'libosinfo:os',
);
const attributes = fc.dictionary(
  fc.constantFrom(...'type device file dev name protocol id state job ready __proto__ toString'.split(' ')),
  hostileText,
  { maxKeys: 4 },
);

const { element } = fc.letrec<{ element: string; content: string }>((tie) => ({
  element: fc
    .tuple(elementName, attributes, fc.array(tie('content'), { maxLength: 5 }))
    .map(([name, named, content]) => `<${name}${written(named)}>${content.join('')}</${name}>`),
  content: fc.oneof(
    { maxDepth: 5 },
    hostileText,
    fc.constantFrom('<!-- c -->', '<![CDATA[<a>]]>', '<?pi x?>', '<a/>', '<disk', '<!ENTITY x "y">'),
    tie('element'),
  ),
}));

function written(named: Record<string, string>): string {
  return Object.entries(named)
    .map(([name, value]) => ` ${name}='${value.replaceAll("'", '&apos;').replaceAll('<', '&lt;')}'`)
    .join('');
}

/** A file that no parser may ever open. */
export const prologue = (canary: string): fc.Arbitrary<string> =>
  fc.constantFrom(
    '',
    '<?xml version="1.0"?>',
    `<!DOCTYPE domain [<!ENTITY canary SYSTEM "file://${canary}">]>`,
    `<!DOCTYPE domain SYSTEM "file://${canary}">`,
    `<!doctype domain [<!ENTITY % canary SYSTEM "file://${canary}"> %canary;]>`,
    '<!DOCTYPE domain [<!ENTITY a "aaaaaaaaaa"><!ENTITY canary "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
  );

const disk = fc
  .tuple(attributes, attributes, attributes, fc.constantFrom('vda', 'vdb', 'vdc'), fc.array(element, { maxLength: 2 }))
  .map(
    ([own, source, driver, target, more]) =>
      `<disk${written(own)}><driver${written(driver)}/><source${written(source)}/><target dev='${target}'/>${more.join('')}</disk>`,
  );

/** A domain as libvirt writes it, as far as its parts are no attack; or a tree of anything. */
export const domainXml: fc.Arbitrary<string> = fc.oneof(
  element,
  fc
    .tuple(fc.array(disk, { maxLength: 4 }), fc.array(element, { maxLength: 3 }))
    .map(
      ([disks, others]) =>
        `<domain id='7'><name>web-1</name><uuid>6a0d5f5e-3c3f-4a43-9f0f-0c1d2e3f4a5b</uuid><devices>${disks.join('')}</devices>${others.join('')}</domain>`,
    ),
);
