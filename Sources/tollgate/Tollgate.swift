import ArgumentParser
import Yams

@main
struct Tollgate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "tollgate", subcommands: [BenchCommand.self])
}
