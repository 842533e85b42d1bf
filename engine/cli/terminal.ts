import { stripVTControlCharacters } from 'node:util';
import Table from 'cli-table3';

/** Where a command writes and reads. */
export interface Terminal {
  /** The result. */
  out(text: string): void;
  /** Progress, questions and errors. */
  err(text: string): void;
  /** Columns of the terminal behind `err`; undefined: it is none, and nothing is drawn over. */
  readonly columns: number | undefined;
  /** Asks a person; undefined: nobody is there to answer. */
  ask(question: string): Promise<string | undefined>;
}

/**
 * Other people's text as one harmless line: a VM's name or an error may carry escape sequences, line breaks, or characters that turn the direction of
 * writing, and would then draw over, or answer for, the reader's terminal.
 */
export function plain(text: string): string {
  return stripVTControlCharacters(text)
    .replace(/[\t\n\r\u2028\u2029]+/g, ' ')
    .replace(/[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, '');
}

/** The same, with its line breaks. */
export function plainLines(text: string): string {
  return text
    .split(/\r?\n/)
    .map((line) => plain(line))
    .join('\n');
}

/** JSON in which what a terminal could obey is escaped too: JSON itself leaves C1 controls as they are. */
export function json(value: unknown): string {
  return JSON.stringify(value, undefined, 2).replace(
    /[\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** Columns under their names; every cell is made plain. */
export function table(head: string[], rows: string[][]): string {
  const nothing = '';
  const made = new Table({
    head,
    chars: {
      top: nothing,
      'top-mid': nothing,
      'top-left': nothing,
      'top-right': nothing,
      bottom: nothing,
      'bottom-mid': nothing,
      'bottom-left': nothing,
      'bottom-right': nothing,
      left: nothing,
      'left-mid': nothing,
      mid: nothing,
      'mid-mid': nothing,
      right: nothing,
      'right-mid': nothing,
      middle: '  ',
    },
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
  });
  made.push(...rows.map((row) => row.map(plain)));
  return made
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');
}

/** Names on the left, values on the right; a value of several lines stays in its column. */
export function fields(entries: [name: string, value: string | string[] | undefined][]): string {
  const shown = entries.filter(([, value]) => value !== undefined && value.length > 0);
  const width = Math.max(...shown.map(([name]) => name.length)) + 2;
  return shown
    .flatMap(([name, value]) =>
      [value ?? ''].flat().map((line, at) => `${(at === 0 ? name : '').padEnd(width)}${plain(line)}`),
    )
    .join('\n');
}

/** 87 ms, 1.2 s, 3 min 5 s. */
export function duration(ms: number): string {
  if (ms < 1_000) return `${ms < 10 ? Math.round(ms * 10) / 10 : Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1_000);
  const [hours, minutes] = [Math.floor(seconds / 3_600), Math.floor(seconds / 60) % 60];
  return hours > 0 ? `${hours} h ${minutes} min` : `${minutes} min ${seconds % 60} s`;
}

/** 2026-11-21 12:30:05 UTC. */
export function time(iso: string): string {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? iso : `${date.toISOString().slice(0, 19).replace('T', ' ')} UTC`;
}

/** 20.0 GiB. */
export function size(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  const power = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  return `${power === 0 ? bytes : (bytes / 1024 ** power).toFixed(1)} ${units[power]}`;
}
