export type LabErrorCode =
  | 'UNSUPPORTED_PLATFORM'
  | 'PACKAGES_MISSING'
  | 'PROGRAM_FAILED'
  | 'LAB_IN_USE'
  | 'LAB_NOT_UP'
  | 'STATE_FOLDER_UNUSABLE'
  | 'BUILD_FAILED'
  | 'LIBVIRTD_FAILED'
  | 'VM_FAILED'
  | 'GUEST_UNREACHABLE'
  | 'GUEST_COMMAND_FAILED'
  | 'STORAGE_FAILED'
  | 'PROXY_FAILED';

/** Thrown by every part of the lab; `code` is stable, `message` says what to do, `cause` is what was caught, if anything. */
export class LabError extends Error {
  readonly code: LabErrorCode;

  constructor(code: LabErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'LabError';
    this.code = code;
  }
}
