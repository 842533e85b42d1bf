import { openCatalogue } from '@stillpoint/engine/catalogue/open.js';

// An engine to be killed: writes, says what it has written, and stays.
const catalogue = await openCatalogue(process.argv[2]);
const names = Array.from({ length: 20 }, (_, number) => `host-${number}`).sort();
for (const name of names) await catalogue.addHost({ name, address: `${name}:8701` });
process.send(names);
