package cli

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

func (p *program) token() *cobra.Command {
	var (
		from   sourceFlags
		claims auth.Claims
	)
	cmd := &cobra.Command{
		Use: "token", GroupID: groupSetUp,
		Short: "Print a token signed with the configured key, for trying things out",
		Long: `Token prints a JWT that this service accepts. Whoever has it is that user until it expires.

In production the host application issues tokens; this command is for development and for looking at problems.`,
		Example: "  chatbox token --dev --user alice --name Alice\n  chatbox token --config app.toml --user carol --role admin --ttl 15m",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVar(&claims.UserID, "user", "", "id of the user (required)")
	cmd.Flags().StringVar(&claims.Name, "name", "", "display name")
	cmd.Flags().StringArrayVar(&claims.Roles, "role", nil, "role, such as admin; repeat it for several")
	cmd.Flags().DurationVar(&claims.TTL, "ttl", 24*time.Hour, "how long it is valid")
	_ = cmd.MarkFlagRequired("user") // fails only for unknown flags
	from.add(cmd)                    // and not of single settings: a token depends on the secret and [auth] alone
	cmd.RunE = p.run(func(*cobra.Command) error {
		s, _, err := p.load(&from, true)
		if err != nil {
			return err
		}
		if !s.Chatbox.JWTSecret.Set() {
			return errors.New("chatbox.jwt_secret is not set: name its file with --config, or use --dev")
		}
		v, err := auth.New(VerifierOptions(s))
		if err != nil {
			return err
		}
		token, err := v.Issue(claims)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(p.Stdout, token)
		return err
	})
	return cmd
}

// VerifierOptions are the settings as package auth wants them.
func VerifierOptions(s *config.Settings) auth.Options {
	leeway := s.Auth.Leeway
	if leeway == 0 {
		leeway = -1 // none; zero would mean the default
	}
	return auth.Options{
		Secret:     []byte(s.Chatbox.JWTSecret.Reveal()),
		Algorithm:  s.Auth.Algorithm,
		Issuer:     s.Auth.Issuer,
		Audience:   s.Auth.Audience,
		Leeway:     leeway,
		UserClaim:  s.Auth.UserClaim,
		NameClaim:  s.Auth.NameClaim,
		RolesClaim: s.Auth.RolesClaim,
		AdminRole:  s.Auth.AdminRole,
	}
}

func (p *program) keys() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", GroupID: groupSetUp, Short: "Make keys for encryption", Args: cobra.NoArgs, RunE: showHelp}
	var out string
	create := &cobra.Command{
		Use:   "new",
		Short: "Make a keyset and print it",
		Long: `New makes the keyset that protects everything stored. Keep a copy in a safe place: without it no transcript
can be read again, and whoever has it can read all of them. All replicas need the same one.

  [encryption]
  keyset = "the printed text"      or   keyset_file = "/path/of/--out"`,
		Args: cobra.NoArgs,
		RunE: p.run(func(*cobra.Command) error {
			keyset, err := seal.NewKeyset()
			if err != nil {
				return err
			}
			if out != "" {
				return writeNew(out, keyset+"\n")
			}
			_, err = fmt.Fprintln(p.Stdout, keyset)
			return err
		}),
	}
	create.Flags().StringVar(&out, "out", "", "new file to write it to, readable by its owner only")
	cmd.AddCommand(create)
	return cmd
}

// writeNew never overwrites: a lost keyset is lost data.
func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write keyset: %w", err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write keyset: %w", err)
	}
	return nil
}
