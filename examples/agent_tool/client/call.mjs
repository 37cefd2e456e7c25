// Calls tools as an agent does: node call.mjs SERVER. A call per line of standard input, {"name", "arguments"}; all that
// are there are sent at once. Prints the server's process id, then each result on a line, in the order of the calls.

import { createInterface } from 'node:readline'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'

const transport = new StdioClientTransport({ command: process.argv[2], env: process.env })
const client = new Client({ name: 'agent', version: '1' })
await client.connect(transport)
console.log(transport.pid)

let printed = Promise.resolve()
let number = 0
for await (const line of createInterface({ input: process.stdin })) {
  const { name, arguments: given } = JSON.parse(line)
  // A model's call has an id of its own each time.
  const call = { name, arguments: given, _meta: { 'example.com/call-id': `call_${process.pid}_${++number}` } }
  const result = client.callTool(call).catch((error) => ({ broken: error.message }))
  printed = printed.then(async () => console.log(JSON.stringify(await result)))
}
await printed
await client.close()
