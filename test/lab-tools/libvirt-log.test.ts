import { frozenTimes, parseAgentLog, parseSnapshotCalls, QUIESCE } from '@stillpoint/lab/libvirt-log.js';
import { describe, expect, it } from 'vitest';

const DAY = '2026-11-21';
const at = (time: string) => Date.parse(`${DAY}T${time}Z`);
const sent = (time: string, command: string) =>
  `${DAY} ${time}+0000: 20175: debug : qemuAgentCommandFull:1039 : Send command '{"execute":"${command}"}' for write, seconds = -2`;
const line = (time: string, text: string) =>
  `${DAY} ${time}+0000: 20326: debug : qemuAgentIOProcessLine:214 : Line [${text}]`;

describe("libvirt's log", () => {
  it('tells when a guest was frozen: from the answer to the freeze to the answer to the thaw', () => {
    const log = [
      sent('11:55:49.042', 'guest-fsfreeze-freeze'),
      line('11:55:49.304', '{"return": 3}'),
      sent('11:55:50.000', 'guest-fsfreeze-status'),
      line('11:55:50.010', '{"return": "frozen"}'),
      sent('11:55:51.000', 'guest-fsfreeze-thaw'),
      line('11:55:51.100', '{"return": 3}'),
      '',
    ].join('\n');
    expect(frozenTimes(parseAgentLog(log))).toEqual([{ fromMs: at('11:55:49.304'), untilMs: at('11:55:51.100') }]);
  });

  it('counts neither a freeze that failed nor a thaw of a guest that was not frozen', () => {
    const log = [
      sent('11:00:00.000', 'guest-fsfreeze-freeze'),
      line('11:00:00.100', '{"error": {"class": "GenericError", "desc": "hook failed"}}'),
      sent('11:00:01.000', 'guest-fsfreeze-thaw'),
      line('11:00:01.100', '{"return": 0}'),
    ].join('\n');
    expect(frozenTimes(parseAgentLog(log))).toEqual([]);
  });

  it('leaves the end open while a guest is frozen', () => {
    const log = [sent('11:00:00.000', 'guest-fsfreeze-freeze'), line('11:00:00.100', '{"return": 1}')].join('\n');
    expect(frozenTimes(parseAgentLog(log))).toEqual([{ fromMs: at('11:00:00.100'), untilMs: undefined }]);
  });

  it('tells the flags of a snapshot call whose XML has several lines', () => {
    const log = [
      `${DAY} 11:56:50.312+0000: 20174: debug : virDomainSnapshotCreateXML:232 : dom=0x7f, (VM: name=a, uuid=b), xmlDesc=<domainsnapshot>`,
      "  <disks><disk name='vda' snapshot='external'/></disks>",
      '</domainsnapshot>, flags=0x50',
      line('11:56:51.000', '{"return": {}}'),
    ].join('\n');
    const calls = parseSnapshotCalls(log);
    expect(calls).toEqual([{ atMs: at('11:56:50.312'), flags: 0x50 }]);
    expect(calls.map(({ flags }) => flags & QUIESCE)).toEqual([QUIESCE]);
  });

  it('may hold anything else', () => {
    expect(parseAgentLog('\u0000garbage\n2026 x\n\n')).toEqual([]);
    expect(parseSnapshotCalls('')).toEqual([]);
  });
});
