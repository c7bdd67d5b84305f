// An example: the backend of a code editor that asks Tollgate before each chat request.
//
//   tollgate-example-editor unix:/run/tollgate.sock [SUBJECT] [REQUESTS] [CREDENTIAL]
//
// Per request it consumes one `chat.requests` and the request's tokens as `tokens.total`, as one:
// either both are counted or neither. It shows what a backend must tell apart: allowed, denied
// (with the time to come back), and the three failures, each with what may be done next.

internal import Foundation
internal import TollgateClient

@main
enum Editor {
  static func main() async {
    let arguments = CommandLine.arguments.dropFirst()
    guard let address = arguments.first else {
      print("usage: tollgate-example-editor ENDPOINT [SUBJECT] [REQUESTS] [CREDENTIAL]")
      exit(2)
    }
    let rest = Array(arguments.dropFirst())
    do {
      try await run(
        endpoint: Endpoint(address), subject: Subject(rest.first ?? "acme/ada"),
        requests: rest.count > 1 ? Int(rest[1]) ?? 5 : 5,
        credential: rest.count > 2 ? rest[2] : "")
    } catch {
      print(error)
      exit(2)
    }
  }

  static func run(
    endpoint: Endpoint, subject: Subject, requests: Int, credential: String
  ) async throws {
    var configuration = ClientConfiguration(endpoints: [endpoint], credential: credential)
    configuration.clientName = "example-editor/1"
    configuration.defaultDeadline = .milliseconds(250)
    let client = TollgateClient(configuration: configuration)
    client.start()
    let backend = Backend(
      client: client, chat: try Name("chat.requests"), tokens: try Name("tokens.total"))
    for number in 0..<max(0, requests) {
      print(await backend.chat(subject, tokens: 200 + Int64(number) * 50))
    }
    let owed = await client.shutdown(grace: .seconds(2))
    // A real backend writes this down and hands it to `adopt` when it starts again.
    if !owed.isEmpty { print("still owed: \(owed.unposted.count + owed.uncancelled.count)") }
  }
}

struct Backend {
  let client: TollgateClient
  let chat: Name
  let tokens: Name

  /// One chat request, as a line for the log.
  func chat(_ subject: Subject, tokens amount: Int64) async -> String {
    let items = [Item(feature: chat, amount: 1), Item(feature: tokens, amount: amount)]
    // Minted and kept before the first send: whatever happens, a retry is the same operation.
    let id = client.newOperationID()
    do throws(TollgateError) {
      return describe(try await client.consume(subject, items, id: id))
    } catch {
      switch error {
      case .rejected(let code, let message): return "500, our mistake: \(code.name): \(message)"
      case .notSent(let reason): return "503, try again: \(reason)"
      case .outcomeUnknown(let id): return "503, try again as operation \(id) only"
      }
    }
  }

  private func describe(_ decision: Decision) -> String {
    let by = decision.source == .clientFallback ? " (by failure policy)" : ""
    guard decision.isAllowed else {
      let wait = decision.retryAfter.map { ", retry after \($0) ms" } ?? ""
      let limit = decision.binding.map { " by \($0)" } ?? ""
      return "429 \(decision.reason.name)\(limit)\(wait)\(by)"
    }
    let left = decision.items.compactMap(\.remaining).map { "\($0)" }.joined(separator: ", ")
    return "200 \(decision.reason.name), left: \(left.isEmpty ? "unlimited" : left)\(by)"
  }
}
