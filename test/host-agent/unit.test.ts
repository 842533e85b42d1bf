import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';

/** The unit's settings, without its comments. */
async function unit(): Promise<string[]> {
  const text = await readFile(
    new URL('../../host-agent/systemd/stillpoint-host-agent.service', import.meta.url),
    'utf8',
  );
  return text.split('\n').filter((line) => /^\w+=/.test(line));
}

test('systemd starts the host agent again after every exit, without end', async () => {
  const settings = await unit();
  expect(settings).toContain('Restart=always');
  expect(settings).toContain('StartLimitIntervalSec=0');
  expect(settings.filter((setting) => setting.startsWith('RestartPrevent'))).toEqual([]);
});

test('systemd kills a supervisor that is silent for 3 s, and starts it again', async () => {
  const settings = await unit();
  // Without Type=notify the watchdog runs while the program is loaded, which a busy host may take longer for.
  expect(settings).toEqual(expect.arrayContaining(['Type=notify', 'WatchdogSec=3s', 'WatchdogSignal=SIGKILL']));
  // systemd-notify is a child.
  expect(settings).toContain('NotifyAccess=all');
});

test('systemd bars no block device from the host agent, whose disks may lie on one', async () => {
  const barring = /^(PrivateDevices|ProtectClock|DeviceAllow|DevicePolicy)=/;
  expect((await unit()).filter((setting) => barring.test(setting))).toEqual([]);
});
