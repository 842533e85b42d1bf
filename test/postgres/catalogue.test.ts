import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openPostgres, type PostgresTimes } from '@stillpoint/engine/catalogue/postgres.js';
import type { PostgresServer } from '@stillpoint/lab/postgres.js';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { catalogueContract } from '../catalogue/catalogue-contract.js';
import { postgresServer, settingsOf } from './server.js';

const log = pino({ level: 'silent' });

let server: PostgresServer;
let passwordFile: string;
let databases = 0;
beforeAll(async () => {
  ({ server, passwordFile } = await postgresServer());
});
afterAll(() => server?.end());

const newDatabase = (options?: string) => server.createDatabase(`catalogue_${++databases}`, options);

const openOn = (url: string, times?: PostgresTimes) => openPostgres(settingsOf(url, { passwordFile }), log, times);

catalogueContract('PostgreSQL', async () => {
  const url = await newDatabase();
  const [one, other] = await Promise.all([openOn(url), openOn(url)]);
  return { one, other, close: async () => void (await Promise.all([one.disconnect(), other.disconnect()])) };
});

describe('the catalogue in PostgreSQL', () => {
  it('is made once by many engines that start at the same time', async () => {
    const url = await newDatabase();
    const catalogues = await Promise.all(Array.from({ length: 6 }, () => openOn(url)));
    const ids = await Promise.all(catalogues.map((catalogue) => catalogue.installationId()));
    expect(new Set(ids).size).toBe(1);
    await Promise.all(catalogues.map((catalogue) => catalogue.disconnect()));
  });

  it('tells an older Stillpoint that it is too old', async () => {
    const url = await newDatabase();
    await (await openOn(url)).disconnect();
    await server.query(
      "insert into kysely_migration values ('9999_from_the_future', '2030')",
      `catalogue_${databases}`,
    );
    await expect(openOn(url)).rejects.toMatchObject({ code: 'CATALOGUE_NEWER' });
  });

  it.each(['fast', 'immediate'] as const)('is there again after a restart of its server (%s)', async (how) => {
    const catalogue = await openOn(await newDatabase());
    const added = await catalogue.addHost({ name: 'kvm-01', address: 'kvm-01:8701' });
    // Several connections, which the restart finds in the pool.
    await Promise.all(Array.from({ length: 5 }, () => catalogue.ping()));
    await server.stop(how);
    await expect(catalogue.ping()).rejects.toMatchObject({ code: 'CATALOGUE_UNAVAILABLE' });
    await server.start();
    expect(await catalogue.listHosts()).toEqual([added]);
    await catalogue.disconnect();
  });

  it('gives up a connection on which a statement was cut off, and the statement with it', async () => {
    const catalogue = await openOn(await newDatabase());
    const database = `catalogue_${databases}`;
    const locked = server.query('begin; lock hosts; select pg_sleep(60)', database);
    const ended = expect(locked).rejects.toThrow(/terminating connection/);
    const sessions = (where: string) =>
      server.query(`select count(*) from pg_stat_activity where datname = '${database}' and ${where}`);
    await expect.poll(() => sessions("wait_event = 'PgSleep'")).toBe('1');
    const waiting = expect(catalogue.listHosts()).rejects.toMatchObject({ code: 'CATALOGUE_UNAVAILABLE' });
    await expect.poll(() => sessions("wait_event_type = 'Lock'")).toBe('1');
    await server.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where datname = '${database}' and wait_event_type = 'Lock'`,
    );
    await waiting;
    await server.query(`select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'`);
    await ended;
    expect(await catalogue.listHosts()).toEqual([]);
    await catalogue.disconnect();
  });

  it('waits for a lock, and for a server that hangs, no longer than it was told to', async () => {
    const catalogue = await openOn(await newDatabase(), { connectMs: 300, statementMs: 200, answerMs: 400 });
    await catalogue.addHost({ name: 'kvm-01', address: 'kvm-01:8701' });
    const goOn = server.freeze();
    try {
      // First the connection that there is, then a new one.
      for (let time = 1; time <= 2; time += 1) {
        await expect(catalogue.listHosts()).rejects.toMatchObject({ code: 'CATALOGUE_UNAVAILABLE' });
      }
    } finally {
      goOn();
    }
    expect(await catalogue.listHosts()).toHaveLength(1);
    const locked = server.query('begin; lock hosts; select pg_sleep(60)', `catalogue_${databases}`);
    const ended = expect(locked).rejects.toThrow(/terminating connection/);
    const asleep = () => server.query("select count(*) from pg_stat_activity where wait_event = 'PgSleep'");
    await expect.poll(asleep).toBe('1');
    await expect(catalogue.listHosts()).rejects.toMatchObject({
      code: 'CATALOGUE_UNAVAILABLE',
      message: expect.stringContaining('statement timeout'),
    });
    await server.query(`select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'`);
    await ended;
    await catalogue.disconnect();
  });

  it('leaves a server that is the primary no more', async () => {
    const url = await newDatabase();
    await (await openOn(url)).disconnect();
    const readOnly = (value: string) =>
      server.query(`alter database catalogue_${databases} set default_transaction_read_only = ${value}`);
    await readOnly('on');
    const catalogue = await openOn(url);
    const host = { name: 'kvm-01', address: 'kvm-01:8701' };
    await expect(catalogue.addHost(host)).rejects.toMatchObject({ code: 'CATALOGUE_UNAVAILABLE' });
    await readOnly('off');
    // On a new connection: the old one's session is still read-only.
    expect(await catalogue.addHost(host)).toMatchObject(host);
    await catalogue.disconnect();
  });

  it('takes a new password into use without a restart', async () => {
    const url = await newDatabase();
    const catalogue = await openOn(url);
    const { user, password } = server.login;
    await server.query(`alter role ${user} password 'another'`);
    // Who is in stays in; who was thrown out has to log in anew.
    await server.query(`select pg_terminate_backend(pid) from pg_stat_activity where usename = '${user}'`);
    await expect.poll(() => catalogue.ping().catch((error: { code: string }) => error.code)).toBe('CATALOGUE_DENIED');
    await writeFile(passwordFile, 'another');
    await catalogue.ping();
    await writeFile(passwordFile, password);
    await server.query(`alter role ${user} password '${password}'`);
    await catalogue.disconnect();
  });

  it('belongs to one Temporal namespace', async () => {
    const catalogue = await openOn(await newDatabase());
    for (let time = 1; time <= 2; time += 1) await catalogue.bindToTemporal('ours');
    await expect(catalogue.bindToTemporal('theirs')).rejects.toMatchObject({ code: 'CATALOGUE_OF_ANOTHER' });
    await catalogue.disconnect();
  });
});

describe('what keeps an engine out of its database is told', () => {
  const opening = async (url: string, change: Parameters<typeof settingsOf>[1] = {}) =>
    openPostgres(settingsOf(url, { passwordFile, ...change }), log, { connectMs: 2_000 });

  it('a server that is away', async () => {
    await expect(opening('postgresql://stillpoint@localhost:1/any')).rejects.toMatchObject({
      code: 'CATALOGUE_UNAVAILABLE',
      message: expect.stringContaining('ECONNREFUSED'),
    });
  });

  it('a database, a user or a password that is none', async () => {
    const url = await newDatabase();
    const wrong = join(passwordFile, '..', 'wrong');
    await writeFile(wrong, 'wrong');
    const denied = { code: 'CATALOGUE_DENIED', message: expect.stringContaining('docs/postgresql.md') };
    await expect(opening(url.replace('catalogue_', 'nothing_'))).rejects.toMatchObject(denied);
    await expect(opening(url.replace('stillpoint@', 'nobody@'))).rejects.toMatchObject(denied);
    await expect(opening(url, { passwordFile: wrong })).rejects.toMatchObject(denied);
    await expect(opening(url, { passwordFile: '/nowhere' })).rejects.toMatchObject(denied);
  });

  it('a database that cannot hold every text', async () => {
    const url = await newDatabase("encoding 'LATIN1' locale 'C'");
    await expect(opening(url)).rejects.toMatchObject({
      code: 'CATALOGUE_DENIED',
      message: expect.stringContaining('LATIN1'),
    });
  });

  it('a certificate that is not the server’s, or whose signer is not trusted', async () => {
    const url = (await newDatabase()).replace('127.0.0.1', 'localhost');
    const denied = { code: 'CATALOGUE_DENIED', message: expect.stringContaining('CERT') };
    const catalogue = await opening(url, { ca: server.caFile });
    const encrypted = await server.query(
      `select ssl from pg_stat_ssl join pg_stat_activity using (pid) where datname = 'catalogue_${databases}'`,
    );
    expect(encrypted).toBe('t');
    await catalogue.disconnect();
    await expect(opening(url.replace('localhost', '127.0.0.1'), { ca: server.caFile })).rejects.toMatchObject(denied);
    const stranger = join(passwordFile, '..', 'stranger');
    const { makeCa } = await import('@stillpoint/host-agent/certs.js');
    await makeCa(stranger);
    await expect(opening(url, { ca: join(stranger, 'ca.pem') })).rejects.toMatchObject({ code: 'CATALOGUE_DENIED' });
  });
});
