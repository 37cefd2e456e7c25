// Pays once per click, also if answers are lost, the page is loaded again, or the user clicks twice.

const form = document.getElementById('form')
const state = document.getElementById('state')
const pauseOf = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

/** Sends until there is an answer. The same key each time. */
async function send({ key, body }) {
  for (let tries = 1; ; tries++) {
    const response = await fetch(`${form.dataset.api}/payments`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'idempotency-key': key },
      body,
    }).catch(() => null) // no answer: perhaps paid, perhaps not
    const problem = response?.headers.get('content-type')?.startsWith('application/problem+json')
      ? await response.json()
      : null
    const retryable = response === null || (problem?.retryable ?? [502, 503, 504].includes(response.status))
    if (!retryable || tries === 10) return { response, problem }
    state.textContent = `No answer yet, sending again (${tries}).`
    // Readable because the server exposes the header.
    const said = Number(response?.headers.get('retry-after') ?? 0) * 1000
    await pauseOf(said + Math.random() * Math.min(200 * 2 ** tries, 5000))
  }
}

/** Keeps the intent until its outcome is known, so that a reload goes on with the same key. */
async function pay(intent) {
  form.inert = true
  localStorage.setItem('intent', JSON.stringify(intent))
  const { response, problem } = await send(intent)
  if (response === null || problem?.retryable) {
    state.textContent = 'No answer. Reload the page to go on.'
    return
  }
  if (problem?.code === 'held') {
    state.textContent = 'We must look at this payment. Do not pay again.'
    return
  }
  localStorage.removeItem('intent')
  form.inert = false
  if (response.ok) {
    const { id } = await response.json()
    const replayed = response.headers.get('idempotent-replayed') === 'true'
    state.textContent = `Paid: payment ${id}${replayed ? ', by an earlier try' : ''}.`
  } else {
    state.textContent = `Not paid: ${problem?.title ?? `status ${response.status}`}.`
  }
}

form.addEventListener('submit', (event) => {
  event.preventDefault()
  const cents = Number(document.getElementById('cents').value)
  pay({ key: crypto.randomUUID(), body: JSON.stringify({ cents }) })
})

const left = localStorage.getItem('intent')
if (left !== null) pay(JSON.parse(left))
