import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Daemon } from './daemon.js';
import { answers } from './ports.js';

const AMQP_HELLO = 'AMQP\x00\x00\x09\x01';

export interface RabbitmqPorts {
  readonly epmd: number;
  readonly rabbitmq: number;
  readonly rabbitmqDistribution: number;
}

/** RabbitMQ and the name server of its Erlang node, which otherwise would be one for the whole machine and outlive us. */
export function rabbitmqDaemons(folder: string, ports: RabbitmqPorts): { epmd: Daemon; rabbitmq: Daemon } {
  const at = (name: string) => join(folder, 'rabbitmq', name);
  const names = { ERL_EPMD_PORT: String(ports.epmd), ERL_EPMD_ADDRESS: '127.0.0.1' };
  return {
    epmd: new Daemon('epmd', folder, {
      program: 'epmd',
      args: ['-port', String(ports.epmd), '-address', '127.0.0.1'],
      // NAMES_REQ of the Erlang distribution protocol.
      ready: () => answers(ports.epmd, '\x00\x01n'),
    }),
    rabbitmq: new Daemon('rabbitmq', folder, {
      // The program itself: the one on the PATH wants to become the user rabbitmq.
      program: '/usr/lib/rabbitmq/bin/rabbitmq-server',
      args: [],
      env: {
        ...names,
        HOME: join(folder, 'rabbitmq'),
        RABBITMQ_NODENAME: 'lab@localhost',
        RABBITMQ_MNESIA_BASE: at('mnesia'),
        RABBITMQ_LOG_BASE: join(folder, 'logs'),
        RABBITMQ_NODE_IP_ADDRESS: '127.0.0.1',
        RABBITMQ_NODE_PORT: String(ports.rabbitmq),
        RABBITMQ_DIST_PORT: String(ports.rabbitmqDistribution),
        RABBITMQ_PID_FILE: at('pid'),
        RABBITMQ_CONF_ENV_FILE: at('rabbitmq-env.conf'),
        RABBITMQ_CONFIG_FILE: at('rabbitmq'),
        RABBITMQ_ENABLED_PLUGINS_FILE: at('enabled_plugins'),
        // Idle schedulers that spin would take the processor from the guests.
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS:
          '-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none',
      },
      ready: () => answers(ports.rabbitmq, AMQP_HELLO),
    }),
  };
}

export function writeRabbitmqConfiguration(folder: string): void {
  const at = (name: string) => join(folder, 'rabbitmq', name);
  mkdirSync(at('mnesia'), { recursive: true });
  writeFileSync(at('enabled_plugins'), '[].\n');
  writeFileSync(at('rabbitmq.conf'), 'disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 512MB\n');
}
