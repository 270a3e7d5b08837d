export const dynamic = 'force-dynamic';

export default function Page() {
  return <p id="other">{process.env.VERSION}</p>;
}
