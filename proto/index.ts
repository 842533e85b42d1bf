export { ErrorInfo } from './gen/google/rpc/error_details.js';
export { Any } from './gen/google/protobuf/any.js';
export { Status } from './gen/google/rpc/status.js';
export * from './gen/stillpoint/host/v1/host_agent.js';
