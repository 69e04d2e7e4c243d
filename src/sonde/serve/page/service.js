// The service, as the page asks it.
//
// ask          an address and a body -> the answer's JSON, or a Problem
// Problem      what went wrong: a sentence, the status (0 = no answer at all), seconds to wait
// setToken     what the service wants to know

export class Problem extends Error {
  constructor(sentence, status = 0, seconds = 0) {
    super(sentence);
    this.status = status;
    this.seconds = seconds;
  }
}

let token = "";

export function setToken(given) {
  token = given;
}

export async function ask(path, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const request = { headers, signal };
  if (body !== undefined) {
    request.method = "POST";
    request.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem("The service does not answer. Is “sonde serve” still running?");
  }
  const content = await response.json().catch(() => ({}));
  if (response.ok) return content;
  const sentence = content.error ?? `The service answered with status ${response.status}.`;
  throw new Problem(sentence, response.status, Number(response.headers.get("Retry-After") ?? 0));
}
