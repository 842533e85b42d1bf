import { WindowSteps } from '@stillpoint/engine/activities/window-steps.js';
import { expect, it } from 'vitest';

const forever = 60_000;
const never = new AbortController().signal;

/** A step that ends when it is told to, and who has told its end so far. */
function stepsOf(steps: WindowSteps, told: string[]) {
  return (name: string, signal: AbortSignal = never, window = 'w1') => {
    let end: (result: string) => void = () => undefined;
    let fail: (error: Error) => void = () => undefined;
    const work = new Promise<string>((resolve, reject) => {
      end = resolve;
      fail = reject;
    });
    const run = steps
      .run(window, signal, () => work)
      .then(
        (result) => told.push(result),
        (error: Error) => told.push(error.message),
      );
    return { end: () => end(name), fail: () => fail(new Error(`${name} failed`)), run };
  };
}

it('tells the end of every step of a window when the last has ended', async () => {
  const told: string[] = [];
  const begin = stepsOf(new WindowSteps({ tellAfterMs: forever }), told);
  const [freeze, local, volume] = [begin('freeze'), begin('local'), begin('volume')];
  freeze.end();
  local.end();
  const other = begin('another window', never, 'w2');
  other.end();
  await other.run;
  expect(told).toEqual(['another window']);
  volume.end();
  await Promise.all([freeze.run, local.run, volume.run]);
  expect(told.toSorted()).toEqual(['another window', 'freeze', 'local', 'volume']);
});

it('tells a failure at once, and with it what has ended well', async () => {
  const told: string[] = [];
  const begin = stepsOf(new WindowSteps({ tellAfterMs: forever }), told);
  const [freeze, local, volume] = [begin('freeze'), begin('local'), begin('volume')];
  freeze.end();
  local.fail();
  await Promise.all([freeze.run, local.run]);
  expect(told.toSorted()).toEqual(['freeze', 'local failed']);
  volume.end();
  await volume.run;
});

it('keeps the end of no step longer than it may, nor when the step is cancelled', async () => {
  const told: string[] = [];
  const cancelled = new AbortController();
  const soon = stepsOf(new WindowSteps({ tellAfterMs: 1 }), told);
  const late = soon('late');
  const freeze = soon('freeze');
  freeze.end();
  await freeze.run;
  const begin = stepsOf(new WindowSteps({ tellAfterMs: forever }), told);
  const pending = begin('pending');
  const local = begin('local', cancelled.signal);
  local.end();
  cancelled.abort();
  await local.run;
  expect(told).toEqual(['freeze', 'local']);
  for (const step of [late, pending]) {
    step.end();
    await step.run;
  }
});
