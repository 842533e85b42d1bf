import { RunsUnavailable } from '@stillpoint/engine/api/runs.js';
import type { DoctorRunFacts } from '@stillpoint/engine/temporal/doctor.js';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ServedApi } from './served.js';

let api: ServedApi;

beforeAll(async () => {
  api = await ServedApi.withoutCatalogue({}, undefined);
});
beforeEach(() => {
  api.doctor.inputs.length = 0;
  api.doctor.unavailable = undefined;
  api.doctor.lastOfSchedule = undefined;
});
afterAll(() => api.stop());

const done = (id: string): DoctorRunFacts => ({
  id,
  state: 'done',
  startedAt: '2026-11-21T12:00:00.000Z',
  error: null,
  report: {
    at: '2026-11-21T12:00:00.000Z',
    repair: true,
    looked: { hosts: 1, snapshots: 2, overlays: 3, volumeSnapshots: 4 },
    findings: [
      {
        code: 'VM_HELD',
        about: { host: 'kvm-01', vm: { uuid: 'u', name: 'web-1' }, thing: 'operation-1' },
        text: 'web-1 is held.',
        advice: 'The VM is given back.',
        outcome: 'repaired',
        detail: '',
      },
    ],
    omitted: 0,
  },
});

describe('POST /v1/doctor', () => {
  it('starts a look, which repairs only when told to, and says where it is followed', async () => {
    const looked = await api.ask('POST', '/v1/doctor');
    expect(looked).toMatchObject({ status: 202, body: { state: 'running', report: null } });
    expect(looked.headers.location).toBe(`/v1/doctor/${looked.body.id}`);
    await api.ask('POST', '/v1/doctor', { repair: true });
    expect(api.doctor.inputs).toEqual([{}, { repair: true }]);
  });

  it.each([{ repair: 'yes' }, { all: true }])('refuses %j', async (body) => {
    expect(await api.ask('POST', '/v1/doctor', body)).toMatchObject({ status: 400, body: { code: 'INPUT_INVALID' } });
    expect(api.doctor.inputs).toEqual([]);
  });

  it('says that Temporal is away', async () => {
    api.doctor.unavailable = new RunsUnavailable('Temporal does not answer.');
    expect(await api.ask('POST', '/v1/doctor')).toMatchObject({ status: 503, body: { code: 'TEMPORAL_UNAVAILABLE' } });
  });
});

describe('a report', () => {
  it('is told once it is there', async () => {
    const { body } = await api.ask('POST', '/v1/doctor', { repair: true });
    expect((await api.ask('GET', `/v1/doctor/${body.id}`)).body.state).toBe('running');
    api.doctor.runs.set(body.id, done(body.id));
    expect((await api.ask('GET', `/v1/doctor/${body.id}?wait=1`)).body).toEqual(done(body.id));
    expect((await api.ask('GET', `/v1/doctor/${body.id}?wait=0.0123`)).status).toBe(200);
  });

  it('of nobody is a 404, and so is the last one before the first', async () => {
    expect(await api.ask('GET', '/v1/doctor/none')).toMatchObject({ status: 404, body: { code: 'REPORT_NOT_FOUND' } });
    expect(await api.ask('GET', '/v1/doctor')).toMatchObject({ status: 404, body: { code: 'REPORT_NOT_FOUND' } });
  });

  it('of the schedule is the last one', async () => {
    api.doctor.lastOfSchedule = done('stillpoint-reconcile-1-2026-11-21T12:00:00Z');
    expect((await api.ask('GET', '/v1/doctor')).body).toEqual(api.doctor.lastOfSchedule);
  });
});
