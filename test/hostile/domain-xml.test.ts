import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readDomainXml, withImage } from '@stillpoint/host-agent/libvirt/domain-xml.js';
import { parseXml, XmlError } from '@stillpoint/host-agent/libvirt/xml.js';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { domainXml, prologue } from './domain-texts.js';
import { tries } from './runs.js';

const folder = mkdtempSync(join(tmpdir(), 'stillpoint-xml-'));
afterAll(() => rmSync(folder, { recursive: true }));
const canary = join(folder, 'canary');
const secret = 'what-is-in-the-canary';
writeFileSync(canary, secret);

/** What comes of it, as text: the definition or the error. */
function read(xml: string): { text: string; isXml: boolean } {
  try {
    return { text: JSON.stringify([readDomainXml(xml)]), isXml: true };
  } catch (error) {
    if (!(error instanceof XmlError)) throw error;
    return { text: error.message, isXml: false };
  }
}

test('domain XML of any kind is read or an XmlError, and no entity in it is ever looked up', () => {
  fc.assert(
    fc.property(prologue(canary), domainXml, (before, xml) => {
      const { text, isXml } = read(before + xml);
      expect(text).not.toContain(secret);
      // An entity that was made longer than it is written.
      expect(text).not.toContain('aaaaaaaaaaaaaaaaaaaa');
      if (/^<!doctype/i.test(before)) expect(isXml).toBe(false);
    }),
    tries(1_000),
  );
});

test('a definition that can be read can be changed and read again, and names the image that it was given', () => {
  fc.assert(
    fc.property(domainXml, fc.string({ unit: 'binary', minLength: 1, maxLength: 60 }), (xml, name) => {
      if (!read(xml).isXml) return;
      const [disk] = readDomainXml(xml).disks;
      if (disk === undefined) return;
      // What XML cannot carry at all is no path of libvirt's.
      const path = `/images/${name.replace(/[^\P{C}\t\n\r]|\ufffe|\uffff/gu, '')}`;
      const changed = withImage(xml, disk.target, { path, format: 'raw', kind: 'file' });
      const after = readDomainXml(changed).disks.find(({ target }) => target === disk.target);
      expect(after).toMatchObject({ path, kind: 'file', format: 'raw' });
      expect(parseXml(changed).toString()).toBe(parseXml(parseXml(changed).toString()).toString());
    }),
    tries(300),
  );
});
