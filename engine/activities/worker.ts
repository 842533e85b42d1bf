import { fileURLToPath } from 'node:url';
import { TASK_QUEUE } from '@stillpoint/workflows';
import { type NativeConnection, Worker } from '@temporalio/worker';
import { createActivities } from './activities.js';
import type { ActivityDeps } from './deps.js';

export interface WorkerSettings {
  connection: NativeConnection;
  namespace: string;
  deps: ActivityDeps;
  /** Default: the project's. */
  taskQueue?: string;
  /** The prebuilt bundle. Default: that of @stillpoint/workflows, which `npm run build` makes. */
  bundlePath?: string;
  /** How long activities may go on after `shutdown()`, ms. Default 20 000. */
  shutdownGraceMs?: number;
}

/**
 * Makes the Temporal worker; `run()` and `shutdown()` it.
 *
 * A shutdown lets running steps end: a cut that is under way is worth its seconds, and a thaw most of all. What is still running after the grace is
 * cancelled, which closes its gRPC calls; the host agent thaws what they held, and another worker is handed the thaw again.
 */
export function createWorker(settings: WorkerSettings): Promise<Worker> {
  return Worker.create({
    connection: settings.connection,
    namespace: settings.namespace,
    taskQueue: settings.taskQueue ?? TASK_QUEUE,
    workflowBundle: {
      codePath: settings.bundlePath ?? fileURLToPath(import.meta.resolve('@stillpoint/workflows/bundle')),
    },
    activities: createActivities(settings.deps),
    // Above the default of 3: eager steps skip a round trip inside the window, once for the freeze, the cuts and the thaw.
    maxEagerActivityReservationsPerWorkflowTask: 20,
    // Few windows are open at once, but each keeps one for its freeze and one for every disk from before the freeze on; waiting (window-slot.ts has a limit),
    // undoing and merging runs keep one each for long, and no window is to wait for them.
    maxConcurrentActivityTaskExecutions: 1_000,
    // Everything in here heartbeats for its own sake; the SDK would hold heartbeats back for up to a minute.
    maxHeartbeatThrottleInterval: '1 s',
    defaultHeartbeatThrottleInterval: '1 s',
    // The default is 10 s: so long would every run of a dead engine wait for it before another one is given its next step.
    stickyQueueScheduleToStartTimeout: '3 s',
    shutdownGraceTime: settings.shutdownGraceMs ?? 20_000,
  });
}
