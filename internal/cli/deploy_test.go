package cli_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// These tests deploy as the instructions say, up to the first thing a replica does: read its settings.

func TestKubernetes_theDocumentedSecretIsEnoughAndAllOfItIsNeeded(t *testing.T) {
	container, mount := kubernetesContainer(t)
	readme := read(t, "k8s", "README.md")
	var documented []string
	for _, m := range regexp.MustCompile(`--from-(?:file|literal)=([\w.]+)`).FindAllStringSubmatch(readme, -1) {
		documented = append(documented, m[1])
		assert.Contains(t, readme, "| `"+m[1]+"` |", "the table explains it")
	}
	secret := secretFiles(t, documented)
	check := func(without string) result {
		var env []string
		for _, v := range container.Env {
			key := v.ValueFrom.SecretKeyRef.Key
			switch {
			case strings.HasPrefix(v.Value, mount+"/"):
				key = strings.TrimPrefix(v.Value, mount+"/")
				require.Contains(t, secret, key, "%s names a key that the instructions do not make", v.Name)
				if key == without {
					continue
				}
				env = append(env, v.Name+"="+secret[key])
			case key != "" && key == without:
			case key != "":
				require.Contains(t, secret, key, "%s names a key that the instructions do not make", v.Name)
				assert.False(t, v.ValueFrom.SecretKeyRef.Optional, "%s: a pod without it does not start", v.Name)
				env = append(env, v.Name+"="+read(t, secret[key]))
			default:
				env = append(env, v.Name+"="+v.Value)
			}
		}
		require.Equal(t, []string{"serve", "--config", "/etc/chatbox/chatbox.toml"}, container.Args)
		return chatbox(t, env, "config", "check", "--config", filepath.Join(project, "k8s", "base", "chatbox.toml"))
	}
	r := check("")
	assert.Equal(t, 0, r.code, r.err)
	assert.Empty(t, r.err, "and nothing to warn of")
	for _, key := range documented {
		assert.Equal(t, 1, check(key).code, "%s is documented as required", key)
	}
}

func TestCompose_theDocumentedFilesAndVariablesAreEnough(t *testing.T) {
	text := read(t, "compose.yaml")
	head, _, found := strings.Cut(text, "\nname:")
	require.True(t, found)
	var file struct {
		Services map[string]struct {
			Command     []string          `yaml:"command"`
			Environment map[string]string `yaml:"environment"`
			Secrets     []string          `yaml:"secrets"`
		} `yaml:"services"`
		Configs map[string]struct {
			Content string `yaml:"content"`
		} `yaml:"configs"`
		Secrets map[string]struct {
			File string `yaml:"file"`
		} `yaml:"secrets"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(text), &file))
	service := file.Services["chatbox"]
	secret := secretFiles(t, service.Secrets)
	for _, name := range service.Secrets {
		assert.Contains(t, head, "> "+file.Secrets[name].File+"\n", "the instructions make it")
	}
	var env []string
	for name, value := range service.Environment {
		switch key, mounted := strings.CutPrefix(value, "/run/secrets/"); {
		case mounted:
			require.Contains(t, secret, key)
			value = secret[key]
		case strings.HasPrefix(value, "${"):
			assert.Contains(t, head, "export "+name+"=", "the instructions set it")
			value = "sk-0a1b2c3d4e5f"
		}
		env = append(env, name+"="+value)
	}
	path := filepath.Join(t.TempDir(), "chatbox.toml")
	require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(file.Configs["chatbox"].Content, "$$", "$")), 0o600))

	require.Equal(t, []string{"serve", "--config", "/etc/chatbox/chatbox.toml", "--dev=${CHATBOX_DEV:-false}"}, service.Command)
	for dev, warnings := range map[string]string{"--dev=false": "", "--dev=true": "warning: dev mode is on: not for production\n"} {
		r := chatbox(t, env, "config", "check", "--config", path, dev)
		assert.Equal(t, 0, r.code, r.err)
		assert.Equal(t, warnings, r.err)
	}
	_, err := os.Stat(".chatbox-dev")
	assert.ErrorIs(t, err, os.ErrNotExist, "the secrets are the given ones also in dev mode: the file system is read-only")

	r := chatbox(t, env, "token", "--config", path, "--user", "ada", "--name", "Ada")
	assert.Equal(t, 0, r.code, r.err)
	assert.Contains(t, head, "/chatbox token --config /etc/chatbox/chatbox.toml --user ada --name Ada\n")
}

// project is the root of the module.
const project = "../.."

func read(t *testing.T, path ...string) string {
	t.Helper()
	name := filepath.Join(path...)
	if !filepath.IsAbs(name) {
		name = filepath.Join(project, name)
	}
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(data)
}

type podContainer struct {
	Args []string `yaml:"args"`
	Env  []struct {
		Name      string `yaml:"name"`
		Value     string `yaml:"value"`
		ValueFrom struct {
			SecretKeyRef struct {
				Key      string `yaml:"key"`
				Optional bool   `yaml:"optional"`
			} `yaml:"secretKeyRef"`
		} `yaml:"valueFrom"`
	} `yaml:"env"`
	VolumeMounts []struct {
		Name      string `yaml:"name"`
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

// kubernetesContainer is the container of the deployment, and where its secret is mounted.
func kubernetesContainer(t *testing.T) (c podContainer, mount string) {
	t.Helper()
	var deployment struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []podContainer `yaml:"containers"`
				} `yaml:"spec"`
			} `yaml:"template"`
		} `yaml:"spec"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(read(t, "k8s", "base", "deployment.yaml")), &deployment))
	require.Len(t, deployment.Spec.Template.Spec.Containers, 1)
	c = deployment.Spec.Template.Spec.Containers[0]
	for _, m := range c.VolumeMounts {
		if m.Name == "secrets" {
			mount = m.MountPath
		}
	}
	require.NotEmpty(t, mount)
	return c, mount
}

// secretFiles makes a file for each name as the instructions do, and returns their paths.
func secretFiles(t *testing.T, names []string) map[string]string {
	t.Helper()
	dir, files := t.TempDir(), map[string]string{}
	for _, name := range names {
		content := "8e1c52f0b7a94d63921f0c5a7be84d1e8e1c52f0b7a94d63921f0c5a7be84d1e\n"
		if strings.HasPrefix(name, "keyset") {
			content = chatbox(t, nil, "keys", "new").out
		}
		files[name] = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(files[name], []byte(content), 0o600))
	}
	return files
}
