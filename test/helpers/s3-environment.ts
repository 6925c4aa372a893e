import { afterAll, beforeAll } from 'vitest';
import { S3_ENVIRONMENT } from './s3-server.ts';

/** The variables of S3_ENVIRONMENT, for the tests of a file. */
export function useS3Environment(): void {
  const before = { ...process.env };
  beforeAll(() => {
    Object.assign(process.env, S3_ENVIRONMENT);
  });
  afterAll(() => {
    process.env = before;
  });
}
