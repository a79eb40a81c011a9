// A request as JSON, as a shell command and as a Python program.

const KEY = "VLCORE_API_KEY";

/** Return the body of a request. */
export function body(model, messages, { maxTokens, temperature }) {
  return {
    model,
    messages,
    max_tokens: maxTokens,
    temperature,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** Return a shell command. The body is a here-document, which needs no quoting and, unlike an
 * argument, has room for images. */
export function asCurl(baseUrl, request, hasKey) {
  const lines = [`curl --no-buffer ${quote(`${baseUrl}/chat/completions`)}`];
  if (hasKey) lines.push(`--header "Authorization: Bearer $${KEY}"`);
  lines.push("--header 'Content-Type: application/json'", "--data-binary @- <<'JSON'");
  return `${lines.join(" \\\n  ")}\n${JSON.stringify(request, null, 2)}\nJSON\n`;
}

/** Return a program that uses the openai package. */
export function asPython(baseUrl, request, hasKey) {
  const key = hasKey ? `os.environ["${KEY}"]` : '"unused"';
  const options = Object.entries(request).map(([name, value]) => {
    return `    ${name}=${literal(value, "    ")},\n`;
  });
  return `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(baseUrl)}, api_key=${key})
stream = client.chat.completions.create(
${options.join("")})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

/** Abbreviate data URLs for display. */
export function abbreviated(code) {
  return code.replace(/(data:[\w./+-]*;base64,[\w+/]{12})[\w+/=]{24,}/g, "$1… abbreviated …");
}

function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function literal(value, indent) {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value); // a JSON string is a valid Python literal
  const isList = Array.isArray(value);
  const items = Object.entries(value).map(([name, item]) => {
    return `${inner}${isList ? "" : `${JSON.stringify(name)}: `}${literal(item, inner)},\n`;
  });
  return `${isList ? "[" : "{"}\n${items.join("")}${indent}${isList ? "]" : "}"}`;
}
