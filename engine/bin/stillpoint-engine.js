#!/usr/bin/env node
// npm links programs when it installs, before anything is built: so the names lead here.
import '../dist/main.js';
