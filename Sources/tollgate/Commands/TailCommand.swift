// tail: decisions as they pass through one sidecar.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateServer
import TollgateWire

struct TailCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "tail", abstract: "Decisions as they pass through this sidecar.",
    discussion: """
      Only while it runs: what passed before is not kept. Where more passes than can be shown, the \
      oldest is dropped and how much is said. With --json one document per line.
      """)

  @Option(help: "Only this account.") var account: Subject?
  @Flag(help: "Only what was denied or refused.") var denied = false
  @Option(help: ArgumentHelp("End after so many.", valueName: "count")) var limit: Int?
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  static let pauseMilliseconds: Int64 = 200

  func validate() throws {
    if let limit, limit < 1 { throw ValidationError("--limit \(limit): give 1 or more.") }
  }

  func run() async throws {
    let server = try await connection.open()
    var request = TailRequest(account: account, denied: denied)
    var shown = 0
    do throws(CommandFailure) {
      while true {
        let reply = try await server.admin(.tail, request, as: TailReply.self).reply
        if request.listener == nil, !output.json {
          Output.error("listening; decisions appear as they are made")
        }
        request.listener = reply.listener
        if reply.dropped > 0 {
          Output.error("\(reply.dropped) more were not shown: too many at once")
        }
        for event in reply.events {
          if output.json {
            let line = try? Document(encoding: event)
            Output.line(line?.json() ?? "")
          } else {
            Output.line(Self.text(of: event))
          }
          shown += 1
          if shown == limit {
            Output.flush()
            return await server.close()
          }
        }
        Output.flush()
        guard reply.events.isEmpty else { continue }
        let pause = Duration.milliseconds(Self.pauseMilliseconds)
        guard (try? await Task.sleep(for: pause)) != nil else { return }
      }
    } catch {
      await server.close()
      throw error
    }
  }

  static func text(of event: TailReply.Event) -> String {
    let items = event.items.map { "\($0.feature)=\($0.amount)" }.joined(separator: " ")
    var text =
      "\(CivilDate.text(event.time)) \(event.allowed ? "ok  " : "DENY") \(event.kind) "
      + "\(event.subject) \(items) \(event.reason)"
    if let limit = event.limit { text += " by \(limit)" }
    if event.replayed { text += " (replayed)" }
    if !event.source.isEmpty, event.source != "redis" { text += " (\(event.source))" }
    return text + " \(event.microseconds) µs \(event.operation)"
  }
}
