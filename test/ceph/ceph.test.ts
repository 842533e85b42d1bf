/** On the real thing: one guest, one Ceph, one Cinder and one Keystone for all of it, so one after another in one file. */
import './the-system.js';
import './mixed-vm.js';
import './faults.js';
import './deaths.js';
// Last: it leaves its snapshots.
import './order.js';
