// `tollgate bench`: measures, and ends with an audit. What it can do lives in TollgateBench; here
// are the command line and the printing.

import ArgumentParser

struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench",
    abstract: "Load sidecars, or a bare Redis by the same hand, and audit every unit.",
    discussion: """
      A run against sidecars ends with an audit: units admitted by the replies are compared with \
      the counters in Redis and with the ledger; any of them may be restarted meanwhile. Exit \
      code 0: no difference; 1: a difference, a limit exceeded, or an operation whose outcome is \
      not known; 2: wrong usage; 3: nobody answered, or, with figures printed, a part of the \
      audit could not be read within --drain: the reason is named.
      """,
    subcommands: [BenchRun.self],
    defaultSubcommand: BenchRun.self)
}
