export * from './activities.js';
export * from './contract.js';
