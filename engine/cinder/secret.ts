import { inspect } from 'node:util';

/** A password or token: readable only by who asks for it, so that no log, error or JSON shows it by accident. */
export class Secret {
  readonly #value: string;

  constructor(value: string) {
    this.#value = value;
  }

  reveal(): string {
    return this.#value;
  }

  toString(): string {
    return '(secret)';
  }

  toJSON(): string {
    return '(secret)';
  }

  [inspect.custom](): string {
    return '(secret)';
  }
}

/** `text` as it may be shown to people: without these secrets, without control characters, at most `length` characters. */
export function quotable(text: string, secrets: readonly Secret[], length = 400): string {
  // Redacted before it is cut, so that no half of a secret is left.
  const redacted = secrets.reduce(
    (rest, secret) => (secret.reveal() === '' ? rest : rest.replaceAll(secret.reveal(), '(secret)')),
    text.slice(0, 65_536),
  );
  const plain = redacted
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]+/gu, ' ')
    .replace(/ {2,}/g, ' ')
    .trim();
  const characters = [...plain];
  return characters.length > length ? `${characters.slice(0, length).join('')}…` : plain;
}
