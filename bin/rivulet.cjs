#!/usr/bin/env node
// Plain, old syntax on purpose: it has to run, and say what is wrong, on a Node that could not even
// parse the rest, and before better-sqlite3's native module (which crashes on Node 20) is loaded.
var version = process.versions.node.split('.').map(Number);
if (version[0] < 22 || (version[0] === 22 && version[1] < 15)) {
  process.stderr.write(
    'rivulet: Node ' + process.versions.node + ' is too old: Rivulet needs Node 22.15 or newer.\n' +
      'Install a current Node (or run it through the `node` package of the registry) and try again.\n'
  );
  process.exit(2);
}
var nodeModule = require('node:module');
// Compiled code is kept between starts: a process that is started again serves sooner.
if (nodeModule.enableCompileCache) nodeModule.enableCompileCache();
import('../dist/cli/main.js').catch(function (error) {
  process.stderr.write('rivulet: ' + (error && error.stack ? error.stack : error) + '\n');
  process.exit(1);
});
