import type { FreezeRoom } from '@stillpoint/host-agent/window.js';
import { expect, test } from 'vitest';
import { freeze, host, prepare, until, verdictOf, web1, window1 } from './fixture.js';

/** From the freeze to the verdict, as an engine does it. */
async function flow(room: FreezeRoom): Promise<void> {
  const holds = ['vda', 'vdb'].map((cut) => room.hold(web1, window1, cut));
  await freeze(room);
  for (const hold of holds) hold.end({ done: true });
  await room.thaw(web1, window1, 'asked by the engine');
}

/** Every call of the port that an undisturbed flow makes. */
async function callsOfFlow(): Promise<string[]> {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const calls = lab.calls();
  await flow(room);
  const afterThaw = () => calls.slice(calls.indexOf('thaw'));
  await until(() => ['setAgentTimeout', 'setNote'].every((name) => afterThaw().includes(name)), 'all is set back');
  return calls;
}

test.each(['before', 'after'] as const)(
  'a host agent killed %s any call of its flow thaws in its next life, and claims only what was proven',
  async (when) => {
    const calls = await callsOfFlow();
    expect(calls).toEqual(expect.arrayContaining(['freeze', 'freezeStatus', 'thaw']));
    for (const [index, name] of calls.entries()) {
      const lab = await host();
      const { room, session } = await lab.doomedLife();
      await prepare(lab, room);
      const death = lab.world.inject('*', { die: when }, { vm: web1, skip: index });
      void flow(room).catch(() => undefined);
      await death.hit;
      session.kill();

      const next = await lab.room();
      const step = `${when} ${name} (call ${index})`;
      await until(() => !lab.isFrozen() && next.state(web1).freezeState === 'thawed', `thawed after death ${step}`);
      const verdict = await next.thaw(web1, window1, 'asked by the engine');
      if (verdict.held) expect(index, step).toBeGreaterThanOrEqual(calls.indexOf('thaw'));
      expect(await verdictOf(next), step).toEqual(verdict);
      await expect(freeze(next), step).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
    }
  },
);
