import type { CloudView } from '../api/schemas.js';
import { type Context, show } from './context.js';
import { CommandError, exitCodes } from './exit-codes.js';
import { fields } from './terminal.js';

/**
 * `cloud`: which one it is, and whether it can be used.
 *
 * @throws CommandError with the cloud's code where it cannot, after it is shown
 */
export async function showCloud(context: Context): Promise<number> {
  const cloud = await context.api.request<CloudView>('GET', '/v1/cloud');
  show(context, cloud, cloudText);
  if (cloud.error === null) return exitCodes.ok;
  throw new CommandError(
    cloud.configured ? exitCodes.unreachable : exitCodes.notFound,
    cloud.error.code,
    cloud.error.text,
  );
}

function cloudText(cloud: CloudView): string {
  if (!cloud.configured) return 'No cloud is configured.';
  const { quota } = cloud;
  return fields([
    ['cloud', cloud.source ?? undefined],
    ['Keystone', cloud.authUrl ?? 'none (noauth)'],
    ['as', cloud.as ?? undefined],
    ['project', cloud.project ?? 'that of the application credential'],
    ['region', cloud.region ?? undefined],
    ['Cinder', cloud.endpoint ?? `as Keystone's catalogue says (${cloud.interface})`],
    ['pools', cloud.pools.join(', ')],
    [
      'attachment',
      cloud.checkAttachment ? 'must name the VM' : 'is not looked at: serial and image alone say whose volume it is',
    ],
    ['warning', cloud.warnings],
    ['usable', cloud.usable ? 'yes' : 'no'],
    [
      'quota',
      quota === null ? undefined : [usedText('snapshots', quota.snapshots), usedText('gigabytes', quota.gigabytes)],
    ],
  ]);
}

function usedText(what: string, { limit, used }: { limit: number; used: number }): string {
  return `${used} of ${limit < 0 ? 'any number of' : limit} ${what} used`;
}
