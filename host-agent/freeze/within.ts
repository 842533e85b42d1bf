import { HostAgentError } from '../errors.js';

/** The promise's outcome, or LIBVIRT_CALL_TIMEOUT after `ms`: our own guard, for a hypervisor that never answers. The call itself goes on. */
export function within<T>(promise: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      reject(new HostAgentError('LIBVIRT_CALL_TIMEOUT', `libvirt has not answered for ${Math.round(ms)} ms`));
    }, ms);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
