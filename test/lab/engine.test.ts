import './engine-death.js';
import './contract-start.js';
import { oneWorld } from './world.js';

oneWorld('engine');
