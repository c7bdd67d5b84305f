// top: who uses most at this moment, and how near their limits they are.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateServer
import TollgateWire

struct TopCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "top",
    abstract: "Who uses most now, over all sidecars, and how near to a limit it is.",
    discussion: """
      Read from the newest deltas of every bucket, so only metered features are seen; what holds \
      no deltas (rates, gates) is in the metrics. A bucket too busy to be read whole is sampled, \
      and said to be.
      """)

  @Flag(help: "Print once and end.") var once = false
  @Option(help: "Rows.") var count = 20
  @Option(help: ArgumentHelp("Between two looks.", valueName: "time")) var interval = "2s"
  @Option(help: ArgumentHelp("What is counted as now.", valueName: "time")) var window = "10s"
  @Flag(help: "The nearest to a limit first.") var near = false
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard (1...TopRequest.countMax).contains(count) else {
      throw ValidationError("--count \(count): give 1 … \(TopRequest.countMax).")
    }
    guard let time = Durations.milliseconds(interval), time >= 200 else {
      throw ValidationError("--interval \(interval): give 200ms or more.")
    }
    guard let time = Durations.milliseconds(window),
      (1_000...TopRequest.windowMillisecondsMax).contains(time)
    else { throw ValidationError("--window \(window): give 1s … 60s.") }
    if output.json && !once { throw ValidationError("--json goes with --once.") }
  }

  func run() async throws {
    let server = try await connection.open()
    let request = TopRequest(
      windowMilliseconds: Durations.milliseconds(window) ?? 10_000, count: count)
    do throws(CommandFailure) {
      while true {
        var (reply, body) = try await server.admin(.top, request, as: TopReply.self)
        if near {
          reply.rows.sort { ($0.usedPerMille ?? -1) > ($1.usedPerMille ?? -1) }
          body = (try? AdminJSON.encode(reply)) ?? body
        }
        if once {
          await server.close()
          return output.json ? Output.json(body) : Output.line(Self.text(of: reply))
        }
        // Clear the screen, home.
        print("\u{1B}[2J\u{1B}[H" + Self.text(of: reply))
        Output.flush()
        let pause = Durations.milliseconds(interval) ?? 2_000
        guard (try? await Task.sleep(for: .milliseconds(pause))) != nil else { return }
      }
    } catch {
      await server.close()
      throw error
    }
  }

  static func text(of reply: TopReply) -> String {
    var table = Table(
      .text("ACCOUNT"), .text("FEATURE"), .number("PER SECOND"), .number("UNITS"),
      .number("DELTAS"), .text("LIMIT"), .number("USED"), .number("REMAINING"), .number("AMOUNT"))
    for row in reply.rows {
      table.add(
        row.account.path, row.feature.text, thousandths(row.milliPerSecond), "\(row.units)",
        "\(row.deltas)", row.limit?.text ?? "-",
        row.usedPerMille.map { "\($0 / 10).\($0 % 10) %" } ?? "-", Output.number(row.remaining),
        Output.number(row.amount))
    }
    var lines = [
      "at \(CivilDate.text(reply.time)), of the last \(reply.windowMilliseconds / 1_000) s",
      reply.rows.isEmpty ? "nothing is used" : table.text,
    ]
    if reply.sampled > 0 {
      lines.append("\(reply.sampled) buckets are sampled: their newest deltas stand for the rest")
    }
    if reply.unread > 0 { lines.append("\(reply.unread) buckets could not be read") }
    return lines.joined(separator: "\n")
  }

  /// With one decimal.
  static func thousandths(_ value: Int64) -> String { "\(value / 1_000).\(value % 1_000 / 100)" }
}
