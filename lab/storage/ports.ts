import { randomInt } from 'node:crypto';
import { connect, createServer } from 'node:net';

// Below what Linux gives to outgoing connections (net.ipv4.ip_local_port_range begins at 32768): a daemon that is down for a
// while finds its port free when it comes back.
const FIRST = 12_000;
const BEHIND = 32_000;

/** Different ports of 127.0.0.1 that are free now, one for each name. */
export async function freePorts<Name extends string>(names: readonly Name[]): Promise<Record<Name, number>> {
  const ports = {} as Record<Name, number>;
  for (const name of names) {
    let port = randomInt(FIRST, BEHIND);
    while (Object.values(ports).includes(port) || !(await isFree(port))) port = randomInt(FIRST, BEHIND);
    ports[name] = port;
  }
  return ports;
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createServer();
    probe.once('error', () => resolve(false));
    probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)));
  });
}

/** Says whether what listens on a port of 127.0.0.1 answers `question` (or the mere connection) with any byte within 2 s. */
export function answers(port: number, question = ''): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    const end = (answer: boolean) => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(2_000, () => end(false));
    socket.once('error', () => end(false));
    socket.once('close', () => end(false));
    socket.once('connect', () => socket.write(question));
    socket.once('data', () => end(true));
  });
}
