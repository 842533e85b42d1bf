export { Any } from './gen/google/protobuf/any.js';
export { ErrorInfo } from './gen/google/rpc/error_details.js';
export { Status } from './gen/google/rpc/status.js';
export * from './gen/stillpoint/host/v1/host_agent.js';
// By name: every generated file exports the same few helper types.
export {
  HostAgentAdminClient,
  type HostAgentAdminServer,
  HostAgentAdminService,
  ReleaseVmRequest,
  ReleaseVmResponse,
} from './gen/stillpoint/host/v1/host_agent_admin.js';
