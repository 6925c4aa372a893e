import { setFlagsFromString } from 'node:v8';
import { EXIT } from '../errors.ts';
import { run } from './run.ts';

// A heap of 20 MB may grow by a few only, buffers included, before all of it is looked through: at some MB/s that is
// every second, for up to 13 ms each, in which nobody's changes go on.
setFlagsFromString('--heap-growing-percent=150');

// A pipe whose reader has gone (`rivulet status | head`) is no failure of ours.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(EXIT.done);
  process.stderr.write(`rivulet: standard output cannot be written to: ${error.message}\n`);
  process.exit(EXIT.failed);
});

process.exit(await run(process.argv.slice(2), process));
