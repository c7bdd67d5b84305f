// The one binary. This file maps every way a command can end to its exit code; each command has a
// file of its own under Commands/.

import ArgumentParser
import Foundation
import TollgateCore
import TollgateServer

@main
struct Tollgate: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "tollgate",
    abstract:
      "Entitlement enforcement beside your backend: limits, metering, exactly-once billing.",
    discussion: """
      Exit codes: 0 ok or allowed, 1 denied or a difference found, 2 usage error, 3 unavailable, \
      4 refused (conflict, not found, invalid document), 5 not permitted, 6 outcome unknown \
      (run again with the same --id), 7 internal error.

      The sidecar is found by --unix, --tcp, TOLLGATE_UNIX, TOLLGATE_TCP or \
      \(ConnectionOptions.defaultSocket), in this order.

      Shell completion: tollgate --generate-completion-script bash|zsh|fish
      """,
    version: ToolVersion.text,
    groupedSubcommands: [
      CommandGroup(name: "Services:", subcommands: [ServeCommand.self, LedgerCommand.self]),
      CommandGroup(
        name: "Data path by hand:",
        subcommands: [
          CheckCommand.self, ConsumeCommand.self, ReserveCommand.self, SettleCommand.self,
          ExtendCommand.self, ReleaseCommand.self, RefundCommand.self, ExplainCommand.self,
        ]),
      CommandGroup(
        name: "Tuning:",
        subcommands: [
          CatalogCommand.self, AccountCommand.self, GrantCommand.self, LimitCommand.self,
          UsageCommand.self, ResetCommand.self, AdjustCommand.self, BypassCommand.self,
        ]),
      CommandGroup(
        name: "Observing:",
        subcommands: [
          StatusCommand.self, TopCommand.self, TailCommand.self, DoctorCommand.self,
          ReconcileCommand.self, AuditLogCommand.self, FallbackCommand.self, LeaseCommand.self,
        ]),
      CommandGroup(name: "Measuring:", subcommands: [BenchCommand.self]),
    ])

  static func main() async {
    do {
      var command = try parseAsRoot(SignedAmount.spared(CommandLine.arguments.dropFirst()))
      if var asynchronous = command as? any AsyncParsableCommand {
        try await asynchronous.run()
      } else {
        try command.run()
      }
    } catch let failure as CommandFailure {
      if CommandLine.arguments.contains("--json") {
        Output.json(AdminErrorReply(failure.failure))
      }
      Output.error(failure.text)
      Foundation.exit(failure.status.rawValue)
    } catch let code as ExitCode {
      Foundation.exit(code.rawValue)
    } catch {
      // Help and version arrive here too, with code 0.
      let code = exitCode(for: error)
      let text = fullMessage(for: error)
      let usage = code == .validationFailure
      if code.isSuccess {
        print(text)
      } else {
        if CommandLine.arguments.contains("--json") {
          Output.json(
            AdminErrorReply(
              AdminFailure(usage ? .badRequest : .internalError, message(for: error))))
        }
        Output.error(text)
      }
      Foundation.exit(usage ? ExitStatus.usage.rawValue : code.rawValue)
    }
  }
}

enum ToolVersion {
  static let text = "0.1.0"
}

extension ExitStatus {
  /// Ends the command with this status where it is not `ok`.
  func leave() throws {
    if self != .ok { throw ExitCode(rawValue) }
  }
}
