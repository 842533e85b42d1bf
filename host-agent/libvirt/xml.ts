import { XMLParser } from 'fast-xml-parser';

/** A text that is no XML, or none that libvirt writes. */
export class XmlError extends Error {
  override readonly name = 'XmlError';
}

/** In characters; a domain of 500 disks has about half of it. More would hold up the whole process while it is parsed. */
const MAX_LENGTH = 1_048_576;
/** libvirt's deepest documents are backing chains: two levels for each image. */
const MAX_DEPTH = 500;

// Entities stay as they are written: those that we read are decoded by `decode`, those that we write back must not change.
const parser = new XMLParser({
  preserveOrder: true,
  ignoreAttributes: false,
  attributeNamePrefix: '',
  parseTagValue: false,
  parseAttributeValue: false,
  trimValues: false,
  processEntities: false,
  commentPropName: '#comment',
  cdataPropName: '#cdata',
  maxNestedTags: MAX_DEPTH,
});

type Content = XmlElement | { text: string } | { markup: string };

/** An element that can be read and changed; written back, everything else is as it was. */
export class XmlElement {
  readonly name: string;
  readonly #attributes: Map<string, string>;
  #content: Content[];

  /** @param attributes and @param content hold texts as they are written, with entities. */
  constructor(name: string, attributes: Map<string, string> = new Map(), content: Content[] = []) {
    this.name = name;
    this.#attributes = attributes;
    this.#content = content;
  }

  /** An attribute's value, entities decoded. Throws XmlError for an entity that XML itself does not define. */
  attribute(name: string): string | undefined {
    const value = this.#attributes.get(name);
    return value === undefined ? undefined : decode(value);
  }

  setAttribute(name: string, value: string): void {
    this.#attributes.set(name, encode(value));
  }

  removeAttribute(name: string): void {
    this.#attributes.delete(name);
  }

  /** The first child of that name. */
  child(name: string): XmlElement | undefined {
    return this.#content.find((item): item is XmlElement => item instanceof XmlElement && item.name === name);
  }

  children(name: string): XmlElement[] {
    return this.#content.filter((item): item is XmlElement => item instanceof XmlElement && item.name === name);
  }

  /** All child elements. */
  get elements(): XmlElement[] {
    return this.#content.filter((item): item is XmlElement => item instanceof XmlElement);
  }

  append(child: XmlElement): void {
    this.#content.push(child);
  }

  removeChildren(name: string): void {
    this.#content = this.#content.filter((item) => !(item instanceof XmlElement) || item.name !== name);
  }

  /** The text directly in it, trimmed, entities decoded. */
  get text(): string {
    return decode(
      this.#content.map((item) => ('text' in item && !(item instanceof XmlElement) ? item.text : '')).join(''),
    ).trim();
  }

  toString(): string {
    const attributes = [...this.#attributes]
      .map(([name, value]) => ` ${name}="${value.replaceAll('"', '&quot;')}"`)
      .join('');
    if (this.#content.length === 0) return `<${this.name}${attributes}/>`;
    const content = this.#content.map((item) => {
      if (item instanceof XmlElement) return item.toString();
      return 'text' in item ? item.text : item.markup;
    });
    return `<${this.name}${attributes}>${content.join('')}</${this.name}>`;
  }
}

/** Parses a document and returns its root. Throws XmlError; a document type is refused, so that no entity can be defined. */
export function parseXml(text: string): XmlElement {
  if (text.length > MAX_LENGTH)
    throw new XmlError(`an XML document of ${text.length} characters, more than ${MAX_LENGTH}`);
  if (/<!(DOCTYPE|ENTITY)/i.test(text)) throw new XmlError('an XML document with a document type');
  let parsed: unknown;
  try {
    parsed = parser.parse(text, true);
  } catch (cause) {
    throw new XmlError(`no well-formed XML: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  const [root, ...others] = contentOf(parsed).filter((item) => item instanceof XmlElement);
  if (root === undefined || others.length > 0) throw new XmlError('an XML document without exactly one root');
  return root;
}

/** Escapes a text for an element's content or an attribute. */
export function encode(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&apos;')
    .replace(/[\t\n\r]/g, (character) => `&#${character.charCodeAt(0)};`);
}

const ENTITIES: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" };

function decode(text: string): string {
  return text.replace(/&([^;&]*)(;?)/g, (written, name: string, end: string) => {
    const character = end === ';' ? (Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : numbered(name)) : undefined;
    if (character === undefined) throw new XmlError(`the unknown entity ${written.slice(0, 40)}`);
    return character;
  });
}

function numbered(name: string): string | undefined {
  const match = /^#(?:x([0-9a-fA-F]{1,6})|([0-9]{1,7}))$/.exec(name);
  if (match === null) return undefined;
  const code = match[1] === undefined ? Number(match[2]) : Number.parseInt(match[1], 16);
  const isCharacter = code > 0 && code <= 0x10_ffff && !(code >= 0xd800 && code <= 0xdfff);
  return isCharacter ? String.fromCodePoint(code) : undefined;
}

/** The parser's ordered output: a list of objects with one key, the name, beside ':@', the attributes. */
function contentOf(list: unknown): Content[] {
  if (!Array.isArray(list)) throw new XmlError('no XML document');
  const content: Content[] = [];
  for (const node of list) {
    if (typeof node !== 'object' || node === null) throw new XmlError('no XML document');
    for (const [name, value] of Object.entries(node)) {
      if (name === ':@' || name.startsWith('?')) continue;
      if (name === '#text') content.push({ text: String(value) });
      else if (name === '#comment') content.push({ markup: `<!--${textOf(value)}-->` });
      else if (name === '#cdata') content.push({ markup: `<![CDATA[${textOf(value)}]]>` });
      else content.push(new XmlElement(name, attributesOf(node), contentOf(value)));
    }
  }
  return content;
}

function textOf(list: unknown): string {
  return contentOf(list)
    .map((item) => ('text' in item && !(item instanceof XmlElement) ? item.text : ''))
    .join('');
}

function attributesOf(node: object): Map<string, string> {
  const attributes: unknown = ':@' in node ? node[':@'] : {};
  if (typeof attributes !== 'object' || attributes === null) throw new XmlError('no XML document');
  return new Map(Object.entries(attributes).map(([name, value]) => [name, String(value)]));
}
