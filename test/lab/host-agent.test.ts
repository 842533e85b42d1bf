import './host-agent-death.js';
import { oneWorld } from './world.js';

oneWorld('host-agent');
