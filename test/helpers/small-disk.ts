import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import type { TestContext } from 'vitest';

/** A file system that is soon full. Skips the test where none can be mounted. */
export class SmallDisk implements Disposable {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  static mount(path: string, size: string, context: TestContext): SmallDisk {
    mkdirSync(path, { recursive: true });
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', path], { stdio: 'ignore' });
    } catch {
      context.skip('mounting a tmpfs needs root');
    }
    return new SmallDisk(path);
  }

  resize(size: string): void {
    execFileSync('mount', ['-o', `remount,size=${size}`, this.path]);
  }

  [Symbol.dispose](): void {
    execFileSync('umount', ['-l', this.path]);
  }
}
