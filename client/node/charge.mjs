// Charges orders with stripe-node: node charge.mjs HOST PORT ORDERS. Fifty at a time; its own keys and retries.

import Stripe from 'stripe'

const [host, port, orders] = process.argv.slice(2)
const agent = new (await import('node:http')).Agent({ keepAlive: false })
const stripe = new Stripe('sk_test_of_nobody', {
  host,
  port: Number(port),
  protocol: 'http',
  maxNetworkRetries: 40,
  telemetry: false,
  httpAgent: agent,
})

let next = 1
const worker = async () => {
  while (next <= Number(orders)) {
    const order = `order-${next++}`
    const charge = await stripe.charges.create({ amount: 1999, currency: 'eur', source: 'tok_visa', description: order })
    if (charge.description !== order) throw new Error(`${order}: ${JSON.stringify(charge)}`)
  }
}
await Promise.all(Array.from({ length: 50 }, worker))
console.log('all charged')
