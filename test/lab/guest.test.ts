import './guest-agent-death.js';
import './snapshot.js';
import { oneWorld } from './world.js';

oneWorld('guest');
