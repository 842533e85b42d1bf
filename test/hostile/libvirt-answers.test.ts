import { HostAgentError } from '@stillpoint/host-agent/errors.js';
import type { Hypervisor } from '@stillpoint/host-agent/hypervisor.js';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { Procedures } from '@stillpoint/host-agent/libvirt/procedures.js';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type FakeCall, FakeLibvirtd, web1, writeDomain } from '../libvirt/fake-libvirtd.js';
import { domainXml, hostileText } from './domain-texts.js';
import { tries } from './runs.js';

/** The port over a libvirtd, and a guest behind it, that answer anything. */

let libvirtd: FakeLibvirtd;
beforeAll(async () => {
  libvirtd = await FakeLibvirtd.start();
});
afterAll(() => libvirtd[Symbol.asyncDispose]());

/** Every call that the rooms make. A merge that never ends is given up by its caller. */
const calls: Record<string, (hypervisor: Hypervisor) => Promise<unknown>> = {
  facts: (h) => h.facts(),
  listVms: (h) => h.listVms(),
  getVm: (h) => h.getVm(web1.uuid),
  getVmBehindJob: (h) => h.getVmBehindJob(web1.uuid),
  setNote: (h) => h.setNote(web1.uuid, 'x'),
  setAgentTimeout: (h) => h.setAgentTimeout(web1.uuid, 5),
  guestOs: (h) => h.guestOs(web1.uuid, 1),
  guestFileSystems: (h) => h.guestFileSystems(web1.uuid),
  freezeStatus: (h) => h.freezeStatus(web1.uuid, 1),
  freeze: (h) => h.freeze(web1.uuid),
  thaw: (h) => h.thaw(web1.uuid),
  snapshotDisks: (h) => h.snapshotDisks(web1.uuid, [{ target: 'vda', path: '/images/a.sp-x.1.qcow2' }]),
  mergeOverlay: (h) =>
    h.mergeOverlay(web1.uuid, 'vda', '/images/a.qcow2', {
      signal: AbortSignal.timeout(50),
    }),
};

type Answer = (call: FakeCall) => void;
const number = fc.oneof(fc.constantFrom(0, 1, 2, 3, 5, 42, 55, 74, 86, 112), fc.integer({ min: 0, max: 0xffff_ffff }));

const answer: fc.Arbitrary<Answer> = fc.oneof(
  // Small numbers reach deeper into lists and lengths than random ones do.
  fc.array(number, { maxLength: 30 }).map(
    (words): Answer =>
      (call) =>
        call.reply((w) => {
          for (const word of words) w.uint(word);
        }),
  ),
  fc.uint8Array({ maxLength: 120 }).map(
    (bytes): Answer =>
      (call) =>
        call.reply((w) => w.opaque(bytes)),
  ),
  fc.tuple(number, number, hostileText).map(
    ([code, domain, message]): Answer =>
      (call) =>
        call.fail({ number: code | 0, domain: domain | 0, message: message.replaceAll('\0', '') }),
  ),
  fc.constant<Answer>((call) => call.connection.socket.destroy()),
  fc.constant<Answer>((call) => call.connection.socket.end(Buffer.from([0, 0]))),
);

/** What libvirt itself would not mangle: the definition of the domain, and the guest's own words. */
const agentText = fc.oneof(
  fc.json({ maxDepth: 3 }),
  fc.json({ maxDepth: 2 }).map((value) => `{"return":${value}}`),
  fc.constantFrom('{"return":"frozen"}', '{"return":{"id":"mswindows"}}', '', 'null', `${'['.repeat(200_000)}`),
  hostileText,
);
const fileSystem = fc.record({
  mountpoint: fc.oneof(hostileText, fc.constant('/x'.repeat(100_000))),
  name: hostileText,
  type: fc.oneof(hostileText, fc.constant('t'.repeat(5_000))),
  disks: fc.array(hostileText, { maxLength: 4 }),
});
const clean = (text: string) => text.replaceAll('\0', '');

const plausible = fc.record({
  xml: domainXml.map(clean),
  agent: agentText.map(clean),
  fileSystems: fc.array(fileSystem, { maxLength: 5 }),
});

function behaveWell({
  xml,
  agent,
  fileSystems,
}: {
  xml: string;
  agent: string;
  fileSystems: { mountpoint: string; name: string; type: string; disks: string[] }[];
}) {
  libvirtd.answer(Procedures.domainGetXmlDesc, (call) => call.reply((w) => w.string(xml)));
  libvirtd.answer(Procedures.qemuAgentCommand, (call) =>
    call.reply((w) => w.optional(agent, (writer, text) => writer.string(text))),
  );
  libvirtd.answer(Procedures.domainGetFsInfo, (call) =>
    call.reply((w) => {
      w.array(fileSystems, 256, (each, { mountpoint, name, type, disks }) => {
        each.string(clean(mountpoint)).string(clean(name)).string(clean(type));
        each.array(disks, 256, (disk, alias) => disk.string(clean(alias)));
      }).uint(0);
    }),
  );
  libvirtd.answer(Procedures.domainGetState, (call) => call.reply((w) => w.int(1).int(1)));
  libvirtd.answer(Procedures.domainLookupByUuid, (call) => call.reply((w) => writeDomain(w)));
  libvirtd.answer(Procedures.domainHasManagedSaveImage, (call) => call.reply((w) => w.int(0)));
  libvirtd.answer(Procedures.domainIsPersistent, (call) => call.reply((w) => w.int(1)));
  libvirtd.answer(Procedures.domainGetJobStats, (call) => call.reply((w) => w.int(0).uint(0)));
  libvirtd.answer(Procedures.domainGetBlockInfo, (call) => call.fail({ number: 8 }));
  libvirtd.answer(Procedures.connectListAllDomains, (call) => call.reply((w) => writeDomain(w.uint(1)).uint(1)));
  libvirtd.answer(Procedures.domainGetBlockJobInfo, (call) =>
    call.reply((w) => w.int(0).int(0).uhyper(0n).uhyper(0n).uhyper(0n)),
  );
  for (const procedure of [
    Procedures.domainAgentSetResponseTimeout,
    Procedures.domainFsFreeze,
    Procedures.domainFsThaw,
  ]) {
    libvirtd.answer(procedure, (call) => call.reply((w) => w.int(1)));
  }
  libvirtd.answer(Procedures.domainSnapshotCreateXml, (call) => call.reply((w) => writeDomain(w.string('s'))));
  libvirtd.answer(Procedures.domainSetMetadata, (call) => call.reply());
  libvirtd.answer(Procedures.domainBlockCommit, (call) => call.reply());
  libvirtd.answer(Procedures.domainBlockJobAbort, (call) => call.reply());
}

/** What was answered, or the code of the refusal; anything else fails. */
async function outcomeOf(call: (hypervisor: Hypervisor) => Promise<unknown>, hypervisor: Hypervisor): Promise<unknown> {
  try {
    return await call(hypervisor);
  } catch (error) {
    if (error instanceof DOMException && error.name === 'TimeoutError') return undefined;
    expect(error).toBeInstanceOf(HostAgentError);
    expect((error as HostAgentError).code).not.toBe('INTERNAL');
    return undefined;
  }
}

async function withHypervisor(use: (hypervisor: Hypervisor) => Promise<void>): Promise<void> {
  const hypervisor = createLibvirtHypervisor({ socketPath: libvirtd.path, reconnectMinMs: 1, reconnectMaxMs: 2 });
  try {
    await hypervisor.start();
    await use(hypervisor);
  } finally {
    await hypervisor.close();
  }
}

test('whatever bytes libvirtd answers, every call ends with a value or an error that is told apart', async () => {
  await fc.assert(
    fc.asyncProperty(
      plausible,
      fc.array(fc.tuple(fc.constantFrom(...Object.keys(Procedures)), answer), { minLength: 1, maxLength: 4 }),
      fc.constantFrom(...Object.values(calls)),
      async (words, oddities, call) => {
        behaveWell(words);
        await withHypervisor(async (hypervisor) => {
          for (const [name, odd] of oddities) {
            const procedure = Procedures[name as keyof typeof Procedures];
            if (procedure !== Procedures.authList && !String(name).startsWith('connect') && name !== 'eventRegister') {
              libvirtd.answer(procedure, odd);
            }
          }
          await outcomeOf(call, hypervisor);
        });
      },
    ),
    tries(120),
  );
});

test('whatever a guest says of itself, it is bounded, or no answer at all', async () => {
  await fc.assert(
    fc.asyncProperty(plausible, async (words) => {
      behaveWell(words);
      await withHypervisor(async (hypervisor) => {
        const status = await outcomeOf((h) => h.freezeStatus(web1.uuid, 1), hypervisor);
        expect([undefined, 'frozen', 'thawed']).toContain(status);
        const os = (await outcomeOf((h) => h.guestOs(web1.uuid, 1), hypervisor)) as { id: string } | undefined;
        expect(os?.id.length ?? 0).toBeLessThanOrEqual(256);
        const found = await outcomeOf((h) => h.guestFileSystems(web1.uuid), hypervisor);
        expect(JSON.stringify(found ?? []).length).toBeLessThan(5 * 60_000);
      });
    }),
    tries(60),
  );
});
