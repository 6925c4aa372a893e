import { startFauxqs } from 'fauxqs';

/** An S3 server as a process of its own, so that it takes no time of those who talk to it. */
const server = await startFauxqs({ port: 0, host: '127.0.0.1', logger: false });
server.createBucket('bucket');
process.once('SIGTERM', () => process.exit(0));
console.log(`ready s3 http://127.0.0.1:${server.port}`);
