import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

/** The quickest app there is: what a proxy adds to it shows. */
const BODY = JSON.stringify({ id: 1, name: 'something', text: 'x'.repeat(200) });

const server = createServer((request, response) => {
  request.resume();
  response.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(BODY) });
  response.end(BODY);
}).listen(0, '127.0.0.1');
await once(server, 'listening');
console.log(`ready app http://127.0.0.1:${(server.address() as AddressInfo).port}`);
