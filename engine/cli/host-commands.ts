import type { HostView } from '../api/schemas.js';
import { type Context, show } from './context.js';
import { CommandError, exitCodes } from './exit-codes.js';
import { plain, table, time } from './terminal.js';

const pathOf = (name: string) => `/v1/hosts/${encodeURIComponent(name)}`;

/** `host add NAME ADDRESS` */
export async function addHost(context: Context, name: string, address: string): Promise<number> {
  const host = await context.api.request<HostView>('POST', '/v1/hosts', { body: { name, address } });
  show(context, host, (added) => {
    const silent = `It does not answer yet: ${added.error?.code ?? ''} ${added.error?.text ?? ''}`;
    return plain(`Added host ${added.name} at ${added.address}. ${added.reachable ? 'It answers.' : silent}`);
  });
  return exitCodes.ok;
}

/** `host list` */
export async function listHosts(context: Context): Promise<number> {
  const answer = await context.api.request<{ hosts: HostView[] }>('GET', '/v1/hosts');
  show(context, answer, ({ hosts }) => (hosts.length === 0 ? noHosts : hostTable(hosts)));
  return exitCodes.ok;
}

/**
 * `host remove NAME [--lost]`
 *
 * @throws CommandError when nobody has said yes to --lost, beside the API's
 */
export async function removeHost(
  context: Context,
  name: string,
  options: { lost?: boolean; yes?: boolean },
): Promise<number> {
  if (!options.lost) {
    await context.api.request('DELETE', pathOf(name));
    show(context, { name, removed: true }, () => plain(`Removed host ${name}.`));
    return exitCodes.ok;
  }
  if (!options.yes) await confirmLost(context, name);
  const host = await context.api.request<HostView>('DELETE', pathOf(name), { query: { lost: 'true' } });
  show(context, host, (lost) =>
    plain(`Host ${lost.name} is lost: every wait for it ends. To take it back: stillpoint host add NAME ADDRESS.`),
  );
  return exitCodes.ok;
}

async function confirmLost(context: Context, name: string): Promise<void> {
  const { terminal } = context;
  terminal.err(
    [
      `You say that host ${plain(name)} is fenced (powered off, or cut off from its storage) and that all its guests are dead.`,
      'Every wait for it ends now: a freeze that is owed a thaw there is given up, and what its snapshots left on local disks stays pending.',
      'If a guest still runs there, it may stay frozen, and data may be lost.',
      '',
    ].join('\n'),
  );
  const answer = await terminal.ask(`Type the name of the host to go on: `);
  if (answer === undefined) {
    throw new CommandError(
      exitCodes.usage,
      'USAGE',
      'Nobody is here to confirm. Run it in a terminal, or say --yes if you are sure.',
    );
  }
  if (answer.trim() !== name) {
    throw new CommandError(exitCodes.failed, 'NOT_CONFIRMED', 'Not confirmed. Nothing was changed.');
  }
}

const noHosts = 'No hosts. Register one: stillpoint host add NAME ADDRESS:8701';

function hostTable(hosts: HostView[]): string {
  const rows = hosts.map((host) => [
    host.name,
    host.address,
    reachOf(host),
    host.hypervisor ?? '-',
    host.version ?? '-',
    host.canQuiesce === null ? '-' : host.canQuiesce ? 'yes' : 'no',
    time(host.addedAt),
  ]);
  const remarks = hosts.flatMap((host) => [
    ...(host.error === null ? [] : [`${host.name}: ${host.error.code}: ${host.error.text}`]),
    ...host.warnings.map((warning) => `${host.name}: ${warning}`),
  ]);
  const lines = table(['NAME', 'ADDRESS', 'STATE', 'HYPERVISOR', 'VERSION', 'CAN QUIESCE', 'ADDED'], rows);
  return remarks.length === 0 ? lines : `${lines}\n\n${remarks.map(plain).join('\n')}`;
}

function reachOf(host: HostView): string {
  if (host.state === 'lost') return 'lost';
  return host.reachable ? 'answers' : 'does not answer';
}
