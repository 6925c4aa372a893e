import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

/** What `npm pack` would take, and what it needs to run. */
const COPIED = ['package.json', 'bin', 'sql'];

/**
 * Builds the package into a directory of the bench's own, and gives the path of its command. What users run is
 * compiled: run from the sources, every process and thread would first strip types for a quarter of a second.
 */
export function buildPackage(directory: string): string {
  mkdirSync(directory, { recursive: true });
  const compiler = join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc');
  const output = join(directory, 'dist');
  const args = [
    '-p',
    join(ROOT, 'tsconfig.build.json'),
    '--outDir',
    output,
    '--declaration',
    'false',
    '--declarationMap',
    'false',
    '--sourceMap',
    'false',
  ];
  try {
    execFileSync(process.execPath, [compiler, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      encoding: 'utf8',
    });
  } catch (error) {
    // Finding type errors is not the bench's business: the compiler has written what it could.
    if (!existsSync(join(output, 'cli', 'main.js')))
      throw new Error(`the build failed:\n${(error as { stdout?: string }).stdout ?? ''}`, { cause: error });
  }
  for (const name of COPIED) cpSync(join(ROOT, name), join(directory, name), { recursive: true });
  symlinkSync(join(ROOT, 'node_modules'), join(directory, 'node_modules'), 'dir');
  return join(directory, 'bin', 'rivulet.cjs');
}
